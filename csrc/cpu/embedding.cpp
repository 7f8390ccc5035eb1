#include "ops/embedding.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/bf16.h"
#include "core/check.h"
#include "core/checked.h"
#include "core/memory.h"
#include "core/parallel.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kElementsPerChunk = 16384;
constexpr int64_t kPanelRows = 16;

void check_ids(const TensorView& input_ids, int64_t vocab_size) {
  for (int64_t t = 0; t < input_ids.size(0); ++t) {
    const int64_t id = input_ids.ptr<int64_t>()[t];
    if (id < 0 || id >= vocab_size)
      Check("embedding")
          .fail("input_ids", "ids from 0 to " + std::to_string(vocab_size - 1),
                std::to_string(id) + " at token " + std::to_string(t));
  }
}

void convert(float from, float* to) { *to = from; }
void convert(bf16 from, float* to) { *to = to_float(from); }
void convert(float from, bf16* to) { *to = to_bf16(from); }
void convert(bf16 from, bf16* to) { *to = from; }

template <class From, class To>
void copy_row(const From* from, To* to, int64_t n) {
  for (int64_t k = 0; k < n; ++k) convert(from[k], to + k);
}

void convert(int8_t from, float* to) { *to = from; }

// A row of a packed table: groups of `kGroup` neighbours, a panel of 16 rows apart.
template <class From, class To>
void copy_packed_row(const From* table, int64_t id, To* to, int64_t n) {
  constexpr int64_t kGroup = 4 / sizeof(From);
  const int64_t panel = ceil_div(n, kGroup) * kPanelRows * kGroup;
  const From* from = table + id / kPanelRows * panel + id % kPanelRows * kGroup;
  for (int64_t k = 0; k < n; k += kGroup, from += kPanelRows * kGroup)
    for (int64_t i = 0; i < std::min(kGroup, n - k); ++i) convert(from[i], to + k + i);
}

template <class From, class To>
void embedding_t(const EmbeddingArgs& a) {
  const int64_t n = a.out.size(1);
  parallel_for(a.out.size(0), ceil_div(kElementsPerChunk, n), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t id = a.input_ids.ptr<int64_t>()[t];
      To* to = a.out.ptr<To>() + t * a.out.step(0);
      if (a.weight.rank == 2)
        copy_row(a.weight.ptr<From>() + id * n, to, n);
      else
        copy_packed_row(a.weight.ptr<From>(), id, to, n);
    }
  });
}

float signed_nibble(uint32_t bits) {
  return static_cast<float>(static_cast<int32_t>(bits << 28) >> 28);
}

// A row of 4 bits, two to a byte.
void read_nibbles(const uint8_t* row, float* to, int64_t n) {
  for (int64_t k = 0; k < n; ++k) to[k] = signed_nibble(row[k / 2] >> k % 2 * 4);
}

// A row of a packed table of 4 bits: 8 neighbours in 32 bits, the odd ones in the upper half.
void read_packed_nibbles(const uint8_t* table, int64_t id, float* to, int64_t n) {
  const int64_t octets = ceil_div(n, 8);
  const uint8_t* from = table + (id / kPanelRows * octets * kPanelRows + id % kPanelRows) * 4;
  for (int64_t k = 0; k < n; k += 8, from += kPanelRows * 4) {
    uint32_t octet;
    std::memcpy(&octet, from, sizeof octet);
    for (int64_t i = 0; i < std::min<int64_t>(8, n - k); ++i)
      to[k + i] = signed_nibble(octet >> (i % 2 * 16 + i / 2 * 4));
  }
}

// A row of a rounded table, without its scale.
void read_row(const TensorView& weight, int64_t id, float* to, int64_t n) {
  const bool is_plain = weight.rank == 2;
  if (weight.dtype == DType::kI8)
    is_plain ? copy_row(weight.ptr<int8_t>() + id * n, to, n)
             : copy_packed_row(weight.ptr<int8_t>(), id, to, n);
  else
    is_plain ? read_nibbles(weight.ptr<uint8_t>() + id * weight.size(1), to, n)
             : read_packed_nibbles(weight.ptr<uint8_t>(), id, to, n);
}

// Of an int8 table, or one of 4 bits. A row passes through float32.
template <class To>
void scaled_embedding_t(const EmbeddingArgs& a) {
  const int64_t n = a.out.size(1);
  parallel_for(a.out.size(0), ceil_div(kElementsPerChunk, n), [&](int64_t begin, int64_t end) {
    auto* row = static_cast<float*>(scratch(ScratchSlot::kRows, n * sizeof(float)));
    for (int64_t t = begin; t < end; ++t) {
      const int64_t id = a.input_ids.ptr<int64_t>()[t];
      const float scale = a.scale->ptr<float>()[id];
      To* to = a.out.ptr<To>() + t * a.out.step(0);
      read_row(a.weight, id, row, n);
      for (int64_t k = 0; k < n; ++k) convert(scale * row[k], to + k);
    }
  });
}

}  // namespace

void embedding(const EmbeddingArgs& a, const Stream&) {
  check_ids(a.input_ids, a.vocab_size);
  const bool to_bf16 = a.out.dtype == DType::kBF16;
  if (a.scale)
    to_bf16 ? scaled_embedding_t<bf16>(a) : scaled_embedding_t<float>(a);
  else if (a.weight.dtype == DType::kBF16)
    to_bf16 ? embedding_t<bf16, bf16>(a) : embedding_t<bf16, float>(a);
  else
    to_bf16 ? embedding_t<float, bf16>(a) : embedding_t<float, float>(a);
}

}  // namespace ernie::cpu
