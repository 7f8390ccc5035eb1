// The activations of ops/activation_core.h as CUTLASS's epilogues ask for them.
#pragma once

#include <cutlass/array.h>

#include "cuda/activation_functions.cuh"

namespace ernie::cuda {

template <class T>
struct Activate {
  struct Arguments {
    Activation activation = Activation::kNone;
  };
};

template <int kCount>
struct Activate<cutlass::Array<float, kCount>> {
  using Values = cutlass::Array<float, kCount>;
  using Arguments = Activate<float>::Arguments;

  CUTLASS_DEVICE Values operator()(Values values, const Arguments& arguments) const {
    if (arguments.activation == Activation::kGelu) {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kCount; ++i) values[i] = gelu(values[i]);
    } else {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kCount; ++i) values[i] = quick_gelu(values[i]);
    }
    return values;
  }
};

}  // namespace ernie::cuda
