// What the products with quantized weights are given: wint8.isa.cpp and wint4.isa.cpp.
#pragma once

#include <cstdint>

namespace ernie::cpu {

// acc[r, 16p + i] = sum_k x[r, k] * w[p, k, i], bit for bit as GemmBlock's (gemm.isa.h) with w as
// bfloat16. Expands w again for every 6 rows: for few rows.
struct QuantizedBlock {
  const void* x;     // [rows, k], float or bfloat16
  int64_t x_stride;  // elements between rows
  int64_t rows;
  const uint8_t* w;  // panels
  int64_t w_stride;  // bytes between panels
  int64_t panels;    // >= 1
  // Behind the last panel of a weight that streams from memory: panels up to it are prefetched.
  const uint8_t* w_end = nullptr;
  int64_t k;   // even
  float* acc;  // [rows, 16 * panels]
  int64_t acc_stride;
};

}  // namespace ernie::cpu
