// Where a block's sums go: out when the block has seen all keys, the workspace when it has not.
#pragma once

#include "core/bf16.h"
#include "cuda/attention/work.cuh"
#include "cuda/ptx.cuh"

namespace ernie::cuda {

__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(bf16* to, float value) { *to = to_bf16(value); }

__device__ __forceinline__ void store_pair(float* to, float a, float b, bool) {
  to[0] = a;
  to[1] = b;
}
__device__ __forceinline__ void store_pair(bf16* to, float a, float b, bool aligned) {
  if (aligned) {
    *reinterpret_cast<uint32_t*>(to) = cvt_rn_bf16x2_f32(b, a);
  } else {
    store(to, a);
    store(to + 1, b);
  }
}

// One row of a tile. `scale` is inverse_sum() of the row's state.
template <class T>
class RowWriter {
 public:
  __device__ __forceinline__ RowWriter(const AttentionParams& p, const Work& w, int row,
                                       const RowState& state)
      : partial_(p.num_splits > 1), aligned_(p.out_aligned) {
    const RowPlace at = row_place(p, w, row);
    if (partial_) {
      const int64_t index = (w.split * p.num_tokens + at.token) * p.num_heads + at.head;
      sums_ = p.partial_out + index * p.head_dim;
      state_ = p.partial_state + index;
    } else {
      out_ = static_cast<T*>(p.out) + at.token * p.out_token_stride + at.head * p.out_head_stride;
      scale_ = inverse_sum(state);
    }
  }

  __device__ __forceinline__ void one(int col, float value) const {
    if (partial_)
      sums_[col] = value;
    else
      store(out_ + col, value * scale_);
  }

  // Columns col and col + 1, col even: head_dim is even, so both exist.
  __device__ __forceinline__ void pair(int col, float a, float b) const {
    if (partial_)
      store_pair(sums_ + col, a, b, true);
    else
      store_pair(out_ + col, a * scale_, b * scale_, aligned_);
  }

  // By one thread per row.
  __device__ __forceinline__ void state(const RowState& state) const {
    if (partial_) *state_ = state;
  }

 private:
  bool partial_;
  bool aligned_;
  float* sums_ = nullptr;
  RowState* state_ = nullptr;
  T* out_ = nullptr;
  float scale_ = 1.f;
};

}  // namespace ernie::cuda
