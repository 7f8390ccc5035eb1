// Linear layers of many experts on rows sorted by expert: with e the expert whose rows hold i,
//
//   out[i] = linear(x[i], weight[e]),   expert_offsets[e] <= i < expert_offsets[e + 1]
//
// linear being that of ops/gemm.h, ops/wint8.h or ops/wint4.h, as the weight says. On the CPU a row
// is, bit for bit, what that op makes of it alone, whatever the other rows and experts are. On CUDA
// too it depends on itself and its expert alone, unless a workspace is given for many rows and
// core/batch_invariant.h is not set: the order of a sum then depends on the shape. It has the bits
// of that op, with core/batch_invariant.h, where x is bfloat16 and the weight bfloat16 or int8.
#pragma once

#include <optional>
#include <span>

#include "core/tensor.h"

namespace ernie {

// The matrices of E experts, one after the other; 1 <= E <= 4096. What they are, dtype and scale
// say:
//
//   float32, bfloat16  [E, N, K]                    without a scale
//   int8               [E, N, K]                    ops/wint8.h
//   uint8              [E, N, ceil(K / 2)]          ops/wint4.h
//
// or packed (CPU): the panels of those headers for every expert, [E, ceil(N / 16), ...].
struct ExpertWeights {
  TensorView weight;                // contiguous
  std::optional<TensorView> scale;  // [E, N], float32, contiguous
  int64_t out_features, in_features;
};

struct GroupedLinearArgs {
  TensorView out;  // [num_rows, out_features], dtype of x, last stride 1
  TensorView x;    // [num_rows, in_features], or [num_tokens, in_features] with source_rows;
                   // float32 or bfloat16, last stride 1. A float32 weight wants a float32 x.
  ExpertWeights weight;
  TensorView expert_offsets;  // [E + 1], int64, contiguous; ascending from 0 to num_rows. CUDA
                              // stays in bounds whatever they hold.
  std::optional<TensorView> source_rows;  // [num_rows], int32, contiguous, each in [0, num_tokens):
                                          // row i is x[source_rows[i]]
  bool int8_activations;                  // int8 weights on the CPU only, as in ops/wint8.h
  // uint8, contiguous. Of grouped_linear_workspace_size() bytes at a multiple of 16 it frees CUDA's
  // choice of a kernel; with less, or none, those run that need none.
  std::optional<TensorView> workspace = std::nullopt;
};

// The first half of the experts' SwiGLU: gate rows first, then up rows, as LinearSiluAndMulArgs of
// ops/gemm.h.
struct GroupedLinearSiluAndMulArgs {
  TensorView out;        // [num_rows, intermediate_size], dtype of x, last stride 1
  TensorView x;          // as above
  ExpertWeights weight;  // of out_features = 2 intermediate_size
  TensorView expert_offsets;
  std::optional<TensorView> source_rows;
  bool int8_activations;
  std::optional<TensorView> workspace = std::nullopt;
};

// What decides how much workspace a product wants.
struct GroupedLinearSize {
  int64_t num_rows, num_experts;
  int64_t columns, in_features;  // of out and of x
  DType x, weight;
  bool gated;    // grouped_linear_silu_and_mul
  bool gathers;  // with source_rows
};
// Bytes; 0 on the CPU. Fewer rows never want more.
int64_t grouped_linear_workspace_size(Device, const GroupedLinearSize&);

// Throws ArgumentError in the name of `op` and of the tensor `name`: what is not as ExpertWeights
// says. Returns E.
int64_t check_expert_weights(const char* op, const char* name, const char* scale_name,
                             const ExpertWeights&, DType x, const Stream&);
// The same for a call with int8_activations: `name` is not int8, or not on the CPU.
void check_int8_activations(const char* op, const char* name, const ExpertWeights&, const Stream&);

void grouped_linear(const GroupedLinearArgs&, const Stream&);
void grouped_linear_silu_and_mul(const GroupedLinearSiluAndMulArgs&, const Stream&);

// Products of several banks of experts, one or more, of which nothing is checked: out, x and
// source_rows are of the rows of all, the expert_offsets of a bank go on where those of the one
// before end, and each writes its own rows alone. All have one type of x; with source_rows, one x.
// On the CPU they are one parallel loop.
namespace cpu {
void grouped_linear(const GroupedLinearArgs&, const Stream&);
void grouped_linear_silu_and_mul(const GroupedLinearSiluAndMulArgs&, const Stream&);
void grouped_linear_of_banks(std::span<const GroupedLinearArgs>, const Stream&);
void grouped_linear_silu_and_mul_of_banks(std::span<const GroupedLinearSiluAndMulArgs>,
                                          const Stream&);
}  // namespace cpu
namespace cuda {
void grouped_linear(const GroupedLinearArgs&, const Stream&);
void grouped_linear_silu_and_mul(const GroupedLinearSiluAndMulArgs&, const Stream&);
void grouped_linear_of_banks(std::span<const GroupedLinearArgs>, const Stream&);
void grouped_linear_silu_and_mul_of_banks(std::span<const GroupedLinearSiluAndMulArgs>,
                                          const Stream&);
int64_t grouped_linear_workspace_size(Device, const GroupedLinearSize&);
}  // namespace cuda

}  // namespace ernie
