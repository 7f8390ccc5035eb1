// What the CPU and the CUDA sampler must do bit for bit alike: the random number and the order of
// logits.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace ernie {

struct PhiloxBlock {
  uint32_t word[4];
};

// Philox4x32-10: 128 random bits that depend on counter and key alone.
// Source: Salmon et al. 2011, doi:10.1145/2063384.2063405, section 4.3.
ERNIE_HOST_DEVICE static inline PhiloxBlock philox(PhiloxBlock counter, uint32_t key0,
                                                   uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(p1),
                static_cast<uint32_t>(p0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(p0)}};
    key0 += 0x9E3779B9u;  // the golden ratio
    key1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

// 53 of 64 random bits as a multiple of 2^-53 in [0, 1).
ERNIE_HOST_DEVICE static inline double uniform_of(uint32_t low, uint32_t high) {
  const uint64_t bits = (uint64_t{high} << 32 | low) >> 11;
  return static_cast<double>(bits) * (1.0 / 9007199254740992.0);
}

// The draw of one sequence for the token at `position`: key = seed, counter = (position, 0), the
// first two words.
ERNIE_HOST_DEVICE static inline double sample_uniform(int64_t seed, int64_t position) {
  const uint64_t s = static_cast<uint64_t>(seed), p = static_cast<uint64_t>(position);
  const PhiloxBlock block =
      philox({{static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), 0, 0}},
             static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32));
  return uniform_of(block.word[0], block.word[1]);
}

// Orders candidates as one number: the larger key is the larger logit, or of equal logits (-0 and 0
// are) the lower id. Not for NaN.
ERNIE_HOST_DEVICE static inline uint64_t sample_key(float logit, uint32_t id) {
  const float canonical = logit + 0.f;  // -0 becomes 0
  uint32_t u;
  memcpy(&u, &canonical, sizeof u);
  const uint32_t ordered = u & 0x80000000u ? ~u : u | 0x80000000u;
  return uint64_t{ordered} << 32 | (0xFFFFFFFFu - id);
}
ERNIE_HOST_DEVICE static inline uint32_t sample_key_id(uint64_t key) {
  return 0xFFFFFFFFu - static_cast<uint32_t>(key);
}

}  // namespace ernie
