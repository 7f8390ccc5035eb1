#include "io/nonfinite.h"

#include <algorithm>

namespace ernie::io {
namespace {

template <class Word>
NonFinite find(const Word* words, int64_t count, Word mask) {
  // Counting a block into a word of its own width lets the compiler use full vectors; the first
  // index is looked for only when there is something to find.
  constexpr int64_t kBlock = 1 << 14;
  NonFinite result;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    Word found = 0;
    for (int64_t i = begin; i < end; ++i)
      found = static_cast<Word>(found + ((words[i] & mask) == mask));
    if (found && result.count == 0)
      for (result.first = begin; (words[result.first] & mask) != mask;) ++result.first;
    result.count += found;
  }
  return result;
}

}  // namespace

NonFinite find_nonfinite_f32(const uint32_t* words, int64_t count) {
  return find<uint32_t>(words, count, 0x7f800000u);
}

NonFinite find_nonfinite_16(const uint16_t* words, int64_t count, uint16_t exponent_mask) {
  return find<uint16_t>(words, count, exponent_mask);
}

}  // namespace ernie::io
