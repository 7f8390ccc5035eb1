#include "ops/fused_moe.h"

#include <algorithm>
#include <string>

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"
#include "ops/moe.h"
#include "ops/moe_checks.h"
#include "ops/moe_core.h"

namespace ernie {
namespace {

constexpr const char* kOp = "fused_moe";
constexpr int64_t kAlignment = 256;  // of a buffer within the workspace

// What the sizes say; each offset in bytes from the start.
struct Layout {
  int64_t expert_offsets, inverse, source_rows;
  int64_t sort_workspace, sort_bytes;
  int64_t product_workspace, product_bytes;
  int64_t gated, y;
  int64_t total;
};

// Places one buffer after the other, in 64 bits or not at all.
class Cursor {
 public:
  // Where `rows * columns` elements of `itemsize` bytes begin.
  int64_t place(int64_t rows, int64_t columns, int64_t itemsize) {
    const int64_t begin = end_;
    int64_t bytes = 0;
    if (!checked_mul(rows, columns, &bytes) || !checked_mul(bytes, itemsize, &bytes) ||
        __builtin_add_overflow(bytes, kAlignment - 1, &bytes) ||
        __builtin_add_overflow(end_, bytes / kAlignment * kAlignment, &end_))
      throw ArgumentError(std::string(kOp) + ": workspace: expected sizes of 64 bits, got " +
                          std::to_string(rows) + " rows of " + std::to_string(columns) +
                          " columns");
    return begin;
  }
  int64_t end() const { return end_; }

 private:
  int64_t end_ = 0;
};

Layout layout_of(Device device, const FusedMoeSize& size) {
  if (size.num_experts < 1 || size.num_experts > kMoeMaxExperts)
    Check(kOp).fail("num_experts", "1 to " + std::to_string(kMoeMaxExperts),
                    std::to_string(size.num_experts));
  int64_t num_rows = 0;
  if (!checked_mul(size.num_tokens, size.top_k, &num_rows) || num_rows > INT32_MAX)
    Check(kOp).fail("topk_ids", "fewer than 2^31 entries",
                    std::to_string(size.num_tokens) + " tokens of " + std::to_string(size.top_k));
  const int64_t itemsize = size_of(size.hidden_states);
  Cursor cursor;
  Layout l;
  l.expert_offsets = cursor.place(size.num_experts + 1, 1, sizeof(int64_t));
  l.inverse = cursor.place(num_rows, 1, sizeof(int32_t));
  l.source_rows = cursor.place(num_rows, 1, sizeof(int32_t));
  l.sort_bytes = moe_sort_workspace_size(device, num_rows, size.num_experts);
  l.sort_workspace = cursor.place(l.sort_bytes, 1, 1);
  l.gated = cursor.place(num_rows, size.intermediate_size, itemsize);
  l.y = cursor.place(num_rows, size.hidden_size, itemsize);
  const GroupedLinearSize gate_up = {.num_rows = num_rows,
                                     .num_experts = size.num_experts,
                                     .columns = size.intermediate_size,
                                     .in_features = size.hidden_size,
                                     .x = size.hidden_states,
                                     .weight = size.gate_up,
                                     .gated = true,
                                     .gathers = true};
  const GroupedLinearSize down = {.num_rows = num_rows,
                                  .num_experts = size.num_experts,
                                  .columns = size.hidden_size,
                                  .in_features = size.intermediate_size,
                                  .x = size.hidden_states,
                                  .weight = size.down,
                                  .gated = false,
                                  .gathers = false};
  l.product_bytes = std::max(grouped_linear_workspace_size(device, gate_up),
                             grouped_linear_workspace_size(device, down));
  l.product_workspace = cursor.place(l.product_bytes, 1, 1);
  l.total = cursor.end();
  return l;
}

FusedMoeSize size_of_call(const FusedMoeArgs& a) {
  return {.hidden_states = a.hidden_states.dtype,
          .gate_up = a.gate_up.weight.dtype,
          .down = a.down.weight.dtype,
          .num_tokens = a.topk_ids.size(0),
          .top_k = a.topk_ids.size(1),
          .num_experts = a.gate_up.weight.size(0),
          .hidden_size = a.hidden_states.size(1),
          .intermediate_size = a.down.in_features};
}

TensorView matrix(char* data, DType dtype, Device device, int64_t rows, int64_t columns) {
  return {.data = data,
          .dtype = dtype,
          .device = device,
          .rank = 2,
          .shape = {rows, columns},
          .stride = {columns, 1}};
}

TensorView vector(char* data, DType dtype, Device device, int64_t size) {
  return {
      .data = data, .dtype = dtype, .device = device, .rank = 1, .shape = {size}, .stride = {1}};
}

// Rows of hidden_states' dtype.
void check_rows(const Check& check, const char* name, const TensorView& t, Dim rows, Dim columns,
                DType dtype) {
  check.shape(name, t, {rows, columns});
  check.dtype(name, t, {dtype});
  check.inner_contiguous(name, t);
}

void check_choice(const Check& check, const char* name, const TensorView& t, DType dtype,
                  Dim num_tokens, Dim top_k) {
  check.shape(name, t, {num_tokens, top_k});
  check.dtype(name, t, {dtype});
  check.contiguous(name, t);
}

void check_experts(const Check& check, const FusedMoeArgs& a, const Stream& stream) {
  const DType dtype = a.hidden_states.dtype;
  const int64_t hidden_size = a.hidden_states.size(1);
  if (a.gate_up.in_features != hidden_size)
    check.fail("w_gate_up", "in_features=" + std::to_string(hidden_size),
               std::to_string(a.gate_up.in_features));
  const int64_t num_experts =
      check_expert_weights(kOp, "w_gate_up", "w_gate_up.scale", a.gate_up, dtype, stream);
  if (a.gate_up.out_features % 2 != 0)
    check.fail("w_gate_up", "an even number of out_features",
               std::to_string(a.gate_up.out_features));
  if (a.down.in_features != a.gate_up.out_features / 2 || a.down.out_features != hidden_size)
    check.fail("w_down",
               "out_features=" + std::to_string(hidden_size) +
                   ", in_features=" + std::to_string(a.gate_up.out_features / 2),
               std::to_string(a.down.out_features) + " and " + std::to_string(a.down.in_features));
  if (check_expert_weights(kOp, "w_down", "w_down.scale", a.down, dtype, stream) != num_experts)
    check.fail("w_down", "num_experts=" + std::to_string(num_experts),
               "shape " + shape_string(a.down.weight));
  if (a.int8_activations) {
    check_int8_activations(kOp, "w_gate_up", a.gate_up, stream);
    check_int8_activations(kOp, "w_down", a.down, stream);
  }
}

void check_workspace(const Check& check, const FusedMoeArgs& a, int64_t bytes) {
  check.rank("workspace", a.workspace, 1);
  check.dtype("workspace", a.workspace, {DType::kU8});
  check.contiguous("workspace", a.workspace);
  if (a.workspace.size(0) < bytes)
    check.fail("workspace", "at least " + std::to_string(bytes) + " bytes",
               std::to_string(a.workspace.size(0)));
  if (reinterpret_cast<uintptr_t>(a.workspace.data) % 16 != 0)
    check.fail("workspace", "memory at a multiple of 16 bytes", "another address");
}

}  // namespace

FusedMoeSteps fused_moe_steps(const FusedMoeArgs& a, Device device) {
  const FusedMoeSize size = size_of_call(a);
  const int64_t num_rows = size.num_tokens * size.top_k;
  const Layout l = layout_of(device, size);
  char* base = a.workspace.ptr<char>();
  const TensorView expert_offsets =
      vector(base + l.expert_offsets, DType::kI64, device, size.num_experts + 1);
  const TensorView inverse =
      matrix(base + l.inverse, DType::kI32, device, size.num_tokens, size.top_k);
  const TensorView source_rows = vector(base + l.source_rows, DType::kI32, device, num_rows);
  const TensorView gated =
      matrix(base + l.gated, size.hidden_states, device, num_rows, size.intermediate_size);
  const TensorView y = matrix(base + l.y, size.hidden_states, device, num_rows, size.hidden_size);
  // Of both products, one after the other.
  const TensorView product_workspace =
      vector(base + l.product_workspace, DType::kU8, device, l.product_bytes);
  return {.sort = {.expert_offsets = expert_offsets,
                   .inverse = inverse,
                   .source_rows = source_rows,
                   .topk_ids = a.topk_ids,
                   .num_experts = size.num_experts,
                   .workspace = vector(base + l.sort_workspace, DType::kU8, device, l.sort_bytes)},
          .gate_up = {.out = gated,
                      .x = a.hidden_states,
                      .weight = a.gate_up,
                      .expert_offsets = expert_offsets,
                      .source_rows = source_rows,
                      .int8_activations = a.int8_activations,
                      .workspace = product_workspace},
          .down = {.out = y,
                   .x = gated,
                   .weight = a.down,
                   .expert_offsets = expert_offsets,
                   .source_rows = std::nullopt,
                   .int8_activations = a.int8_activations,
                   .workspace = product_workspace},
          .combine = {.out = a.out,
                      .x = y,
                      .shared = a.shared,
                      .topk_weights = a.topk_weights,
                      .inverse = inverse}};
}

int64_t fused_moe_workspace_size(Device device, const FusedMoeSize& size) {
  return layout_of(device, size).total;
}

void fused_moe(const FusedMoeArgs& a, const Stream& stream) {
  const Check check(kOp);
  check.rank("hidden_states", a.hidden_states, 2);
  const DType dtype = a.hidden_states.dtype;
  check.dtype("hidden_states", a.hidden_states, {DType::kF32, DType::kBF16});
  check.inner_contiguous("hidden_states", a.hidden_states);
  check.rank("topk_ids", a.topk_ids, 2);
  const Dim num_tokens{"num_tokens", a.hidden_states.size(0)};
  const Dim hidden_size{"hidden_size", a.hidden_states.size(1)};
  const Dim top_k{"top_k", a.topk_ids.size(1)};
  check_choice(check, "topk_ids", a.topk_ids, DType::kI32, num_tokens, top_k);
  check_choice(check, "topk_weights", a.topk_weights, DType::kF32, num_tokens, top_k);
  check_experts(check, a, stream);
  const TensorView* shared = pointer_to(a.shared);
  if (shared != nullptr) check_rows(check, "shared", *shared, num_tokens, hidden_size, dtype);
  check_rows(check, "out", a.out, num_tokens, hidden_size, dtype);
  check_workspace(check, a, fused_moe_workspace_size(stream.device, size_of_call(a)));

  // In place means the very same rows; a shifted overlap would read what it has overwritten.
  const bool in_place =
      shared != nullptr && a.out.data == shared->data && a.out.step(0) == shared->step(0);
  const std::initializer_list<Check::Named> all = {{"out", &a.out},
                                                   {"hidden_states", &a.hidden_states},
                                                   {"topk_weights", &a.topk_weights},
                                                   {"topk_ids", &a.topk_ids},
                                                   {"w_gate_up", &a.gate_up.weight},
                                                   {"w_gate_up.scale", pointer_to(a.gate_up.scale)},
                                                   {"w_down", &a.down.weight},
                                                   {"w_down.scale", pointer_to(a.down.scale)},
                                                   {"shared", in_place ? nullptr : shared},
                                                   {"workspace", &a.workspace}};
  for (const Check::Named& named : all)
    if (named.second != nullptr) check.device(stream.device, {named});
  if (shared != nullptr) check.device(stream.device, {{"shared", shared}});
  check_written(check, {"out", &a.out}, all);
  check_written(check, {"workspace", &a.workspace}, all);
  if (a.out.numel() == 0) return;
  dispatch(kOp, {&cpu::fused_moe, ERNIE_CUDA_FN(cuda::fused_moe)}, a, stream);
}

}  // namespace ernie
