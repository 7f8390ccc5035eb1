// libFuzzer target: any bytes, taken as a safetensors file. The only exception that may leave is
// FormatError, and a header that is accepted must be sound.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "io/safetensors.h"

namespace {

using namespace ernie::io;

void parse(const uint8_t* text, uint64_t length, uint64_t data_bytes) {
  const auto* begin = reinterpret_cast<const char*>(text);
  const SafetensorsHeader header({begin, begin + length}, data_bytes, "fuzz");
  uint64_t covered = 0;
  for (const SafetensorsEntry& entry : header.entries()) {
    uint64_t bits = entry.dtype->bits;
    for (size_t i = 0; i < static_cast<size_t>(entry.rank); ++i)
      bits *= static_cast<uint64_t>(entry.shape[i]);
    if (entry.begin > entry.end || entry.end > data_bytes) abort();
    if (bits != 8 * entry.nbytes() || header.find(entry.name) != &entry) abort();
    covered += entry.nbytes();
  }
  if (covered != data_bytes) abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const uint64_t length = SafetensorsHeader::length({data, size}, size, "fuzz");
    parse(data + 8, length, size - 8 - length);
  } catch (const ernie::FormatError&) {
  }
  // Once more with the first 8 bytes as the size of the data and all the rest as the header: a
  // mutation that changes the header's length then still gets past the length check.
  if (size >= 8) try {
      uint64_t data_bytes = 0;
      std::memcpy(&data_bytes, data, 8);
      parse(data + 8, size - 8, data_bytes % (1 << 20));
    } catch (const ernie::FormatError&) {
    }
  return 0;
}
