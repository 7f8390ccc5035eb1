// An expert's weight as the first operand of bfloat16 products, by its dtype.
//
// The product sums over k in any order as long as both operands agree. Lane c of a quad loads 16
// bytes of a weight's row, kLoadK consecutive k, and of a row of x the same k as chunks of 8. A
// chunk of the weight, made four pairs of bfloat16, and one of x then serve two m16n8k16 products
// as they lie: words 0 and 1 the first, 2 and 3 the second. The weight comes first because 16 of
// its rows by 8 rows of x waste least when an expert has few rows.
#pragma once

#include "cuda/gemm/fragment.cuh"
#include "cuda/grouped_gemm/kernels.h"
#include "cuda/wint4/fragment.cuh"
#include "cuda/wint8/fragment.cuh"

namespace ernie::cuda {

template <DType kDtype>
__device__ __forceinline__ int64_t row_bytes(int k) {
  if constexpr (kDtype == DType::kF32) return int64_t{4} * k;
  if constexpr (kDtype == DType::kBF16) return int64_t{2} * k;
  return kDtype == DType::kI8 ? Wint8Weight::row_bytes(k) : Wint4Weight::row_bytes(k);
}

// Row `row` of expert `expert`; rows_of_weight of them an expert.
template <DType kDtype>
__device__ __forceinline__ const char* weight_data(const GroupedOperands& p, int expert,
                                                   int64_t rows_of_weight, int64_t row) {
  return static_cast<const char*>(p.weight) +
         (expert * rows_of_weight + row) * row_bytes<kDtype>(p.k);
}

template <DType kDtype>
struct ExpertWeight;

template <>
struct ExpertWeight<DType::kBF16> {
  static constexpr int kLoadK = 8;
  static constexpr float kUnit = 1;  // one over the factor of what `chunk` gives

  template <bool kAligned>
  static __device__ __forceinline__ uint4 load(const char* row, int k, int end) {
    return load_chunk<kAligned, true>(reinterpret_cast<const bf16*>(row), k, end);
  }
  static __device__ __forceinline__ uint4 chunk(const uint4& bytes, int) { return bytes; }
};

template <>
struct ExpertWeight<DType::kI8> : Wint8Weight {};

template <>
struct ExpertWeight<DType::kU8> : Wint4Weight {};

}  // namespace ernie::cuda
