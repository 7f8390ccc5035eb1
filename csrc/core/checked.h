// Size arithmetic that cannot wrap: what comes from a file or a caller is multiplied here.
#pragma once

#include <cstdint>

namespace ernie {

// False on overflow; *product is then unspecified.
inline bool checked_mul(int64_t a, int64_t b, int64_t* product) {
  return !__builtin_mul_overflow(a, b, product);
}

// n / d rounded up, for n >= 0 and d > 0. Never overflows.
constexpr int64_t ceil_div(int64_t n, int64_t d) { return n / d + (n % d != 0); }
constexpr int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

}  // namespace ernie
