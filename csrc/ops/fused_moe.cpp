#include "ops/fused_moe.h"

#include <algorithm>
#include <limits>
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

// Of all banks together.
int64_t all_experts(const FusedMoeSize& size) {
  int64_t all = 0;
  for (const FusedMoeSize::Bank& bank : size.banks) {
    const int64_t n = bank.num_experts;
    if (n < 1 || n > kMoeMaxExperts || (all += n) > kMoeMaxExperts)
      Check(kOp).fail("num_experts", "1 to " + std::to_string(kMoeMaxExperts),
                      std::to_string(n < 1 ? n : std::max(n, all)));
  }
  return all;
}

int64_t widest(const FusedMoeSize& size) {
  int64_t width = 0;
  for (const FusedMoeSize::Bank& bank : size.banks) width = std::max(width, bank.intermediate_size);
  return width;
}

// From a row between the products to the next, in elements: each begins at a multiple of 16 bytes
// whatever its bank's width, so that all of them can be read 16 bytes at a time.
int64_t gated_stride(const FusedMoeSize& size) {
  constexpr int64_t kUnit = 8;
  const int64_t width = widest(size);
  return width > std::numeric_limits<int64_t>::max() - kUnit ? width : round_up(width, kUnit);
}

// The most that a product wants, of either half of any bank.
int64_t product_bytes_of(Device device, const FusedMoeSize& size, int64_t num_rows) {
  int64_t most = 0;
  for (const FusedMoeSize::Bank& bank : size.banks) {
    const GroupedLinearSize gate_up = {.num_rows = num_rows,
                                       .num_experts = bank.num_experts,
                                       .columns = bank.intermediate_size,
                                       .in_features = size.hidden_size,
                                       .x = size.hidden_states,
                                       .weight = bank.gate_up,
                                       .gated = true,
                                       .gathers = true};
    const GroupedLinearSize down = {.num_rows = num_rows,
                                    .num_experts = bank.num_experts,
                                    .columns = size.hidden_size,
                                    .in_features = bank.intermediate_size,
                                    .x = size.hidden_states,
                                    .weight = bank.down,
                                    .gated = false,
                                    .gathers = false};
    most = std::max({most, grouped_linear_workspace_size(device, gate_up),
                     grouped_linear_workspace_size(device, down)});
  }
  return most;
}

Layout layout_of(Device device, const FusedMoeSize& size) {
  const int64_t num_experts = all_experts(size);
  int64_t num_rows = 0;
  if (!checked_mul(size.num_tokens, size.top_k, &num_rows) || num_rows > INT32_MAX)
    Check(kOp).fail("num_tokens",
                    "fewer than 2^31 rows of top_k=" + std::to_string(size.top_k) + " in all",
                    std::to_string(size.num_tokens));
  const int64_t itemsize = size_of(size.hidden_states);
  Cursor cursor;
  Layout l;
  l.expert_offsets = cursor.place(num_experts + 1, 1, sizeof(int64_t));
  l.inverse = cursor.place(num_rows, 1, sizeof(int32_t));
  l.source_rows = cursor.place(num_rows, 1, sizeof(int32_t));
  l.sort_bytes = moe_sort_workspace_size(device, num_rows, num_experts);
  l.sort_workspace = cursor.place(l.sort_bytes, 1, 1);
  l.gated = cursor.place(num_rows, gated_stride(size), itemsize);
  l.y = cursor.place(num_rows, size.hidden_size, itemsize);
  l.product_bytes = product_bytes_of(device, size, num_rows);
  l.product_workspace = cursor.place(l.product_bytes, 1, 1);
  l.total = cursor.end();
  return l;
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

// `size` entries from `begin` on.
TensorView part(const TensorView& vector, int64_t begin, int64_t size) {
  TensorView t = vector;
  t.data = vector.ptr<char>() + begin * size_of(vector.dtype);
  t.shape[0] = size;
  return t;
}

TensorView first_columns(TensorView matrix, int64_t columns) {
  matrix.shape[1] = columns;
  return matrix;
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

// What a bank's tensors are called: "w_down", or "w_down[1]" where there are several.
struct BankNames {
  std::string gate_up, gate_up_scale, down, down_scale;

  BankNames(std::span<const ExpertBank> banks, size_t index) {
    std::string at;
    if (banks.size() > 1) at.append("[").append(std::to_string(index)).append("]");
    gate_up = "w_gate_up" + at, gate_up_scale = gate_up + ".scale";
    down = "w_down" + at, down_scale = down + ".scale";
  }
};

void check_bank(const Check& check, const FusedMoeArgs& a, size_t index, const Stream& stream) {
  const DType dtype = a.hidden_states.dtype;
  const int64_t hidden_size = a.hidden_states.size(1);
  const auto& [gate_up, down] = a.banks[index];
  const BankNames names(a.banks, index);
  const char *w_gate_up = names.gate_up.c_str(), *w_down = names.down.c_str();
  if (gate_up.in_features != hidden_size)
    check.fail(w_gate_up, "in_features=" + std::to_string(hidden_size),
               std::to_string(gate_up.in_features));
  const int64_t num_experts =
      check_expert_weights(kOp, w_gate_up, names.gate_up_scale.c_str(), gate_up, dtype, stream);
  if (gate_up.out_features % 2 != 0)
    check.fail(w_gate_up, "an even number of out_features", std::to_string(gate_up.out_features));
  if (down.in_features != gate_up.out_features / 2 || down.out_features != hidden_size)
    check.fail(w_down,
               "out_features=" + std::to_string(hidden_size) +
                   ", in_features=" + std::to_string(gate_up.out_features / 2),
               std::to_string(down.out_features) + " and " + std::to_string(down.in_features));
  if (check_expert_weights(kOp, w_down, names.down_scale.c_str(), down, dtype, stream) !=
      num_experts)
    check.fail(w_down, "num_experts=" + std::to_string(num_experts),
               "shape " + shape_string(down.weight));
  if (a.int8_activations) {
    check_int8_activations(kOp, w_gate_up, gate_up, stream);
    check_int8_activations(kOp, w_down, down, stream);
  }
}

// That a tensor of the call that is written lies apart from all experts.
void check_apart_from_banks(const Check& check, const char* name, const TensorView& written,
                            const FusedMoeArgs& a) {
  for (size_t i = 0; i < a.banks.size(); ++i) {
    const auto& [gate_up, down] = a.banks[i];
    const BankNames names(a.banks, i);
    check.disjoint(name, written, names.gate_up.c_str(), gate_up.weight);
    check.disjoint(name, written, names.down.c_str(), down.weight);
    if (gate_up.scale) check.disjoint(name, written, names.gate_up_scale.c_str(), *gate_up.scale);
    if (down.scale) check.disjoint(name, written, names.down_scale.c_str(), *down.scale);
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

FusedMoeSize fused_moe_size(const TensorView& hidden_states, const TensorView& topk_ids,
                            std::span<const ExpertBank> banks) {
  const Check check(kOp);
  check.rank("hidden_states", hidden_states, 2);
  check.dtype("hidden_states", hidden_states, {DType::kF32, DType::kBF16});
  check.rank("topk_ids", topk_ids, 2);
  int64_t entries;
  if (!checked_mul(topk_ids.size(0), topk_ids.size(1), &entries) || entries > INT32_MAX)
    check.fail("topk_ids", "fewer than 2^31 entries", "shape " + shape_string(topk_ids));
  if (banks.empty()) check.fail("w_gate_up", "one bank of experts or more", "none");
  FusedMoeSize size = {.hidden_states = hidden_states.dtype,
                       .num_tokens = topk_ids.size(0),
                       .top_k = topk_ids.size(1),
                       .hidden_size = hidden_states.size(1),
                       .banks = {}};
  size.banks.reserve(banks.size());
  int64_t num_experts = 0;
  for (size_t i = 0; i < banks.size(); ++i) {
    const auto& [gate_up, down] = banks[i];
    if (gate_up.weight.rank < 3)  // of 3 dimensions, or of panels with more
      check.rank(BankNames(banks, i).gate_up.c_str(), gate_up.weight, 3);
    if (down.in_features < 0)
      check.fail(BankNames(banks, i).down.c_str(), "in_features of 0 or more",
                 std::to_string(down.in_features));
    const int64_t count = gate_up.weight.size(0);
    if (count < 1 || count > kMoeMaxExperts - num_experts)
      check.fail(BankNames(banks, i).gate_up.c_str(),
                 "1 to " + std::to_string(kMoeMaxExperts) + " experts in all banks",
                 std::to_string(count) +
                     (i > 0 ? " after " + std::to_string(num_experts) + " of other banks" : ""));
    num_experts += count;
    size.banks.push_back({.gate_up = gate_up.weight.dtype,
                          .down = down.weight.dtype,
                          .num_experts = count,
                          .intermediate_size = down.in_features});
  }
  return size;
}

FusedMoeSteps fused_moe_steps(const FusedMoeArgs& a, Device device) {
  const FusedMoeSize size = fused_moe_size(a.hidden_states, a.topk_ids, a.banks);
  const int64_t num_rows = size.num_tokens * size.top_k, num_experts = all_experts(size);
  const Layout l = layout_of(device, size);
  char* base = a.workspace.ptr<char>();
  const TensorView expert_offsets =
      vector(base + l.expert_offsets, DType::kI64, device, num_experts + 1);
  const TensorView inverse =
      matrix(base + l.inverse, DType::kI32, device, size.num_tokens, size.top_k);
  const TensorView source_rows = vector(base + l.source_rows, DType::kI32, device, num_rows);
  const TensorView gated =
      matrix(base + l.gated, size.hidden_states, device, num_rows, gated_stride(size));
  const TensorView y = matrix(base + l.y, size.hidden_states, device, num_rows, size.hidden_size);
  // Of all products, one after the other.
  const TensorView product_workspace =
      vector(base + l.product_workspace, DType::kU8, device, l.product_bytes);
  FusedMoeSteps steps = {
      .sort = {.expert_offsets = expert_offsets,
               .inverse = inverse,
               .source_rows = source_rows,
               .topk_ids = a.topk_ids,
               .num_experts = num_experts,
               .workspace = vector(base + l.sort_workspace, DType::kU8, device, l.sort_bytes)},
      .gate_up = {},
      .down = {},
      .combine = {.out = a.out,
                  .x = y,
                  .shared = a.shared,
                  .topk_weights = a.topk_weights,
                  .inverse = inverse}};
  int64_t first_expert = 0;
  for (const ExpertBank& bank : a.banks) {
    const int64_t count = bank.gate_up.weight.size(0);
    const TensorView offsets = part(expert_offsets, first_expert, count + 1);
    const TensorView gated_of_bank = first_columns(gated, bank.down.in_features);
    steps.gate_up.push_back({.out = gated_of_bank,
                             .x = a.hidden_states,
                             .weight = bank.gate_up,
                             .expert_offsets = offsets,
                             .source_rows = source_rows,
                             .int8_activations = a.int8_activations,
                             .workspace = product_workspace});
    steps.down.push_back({.out = y,
                          .x = gated_of_bank,
                          .weight = bank.down,
                          .expert_offsets = offsets,
                          .source_rows = std::nullopt,
                          .int8_activations = a.int8_activations,
                          .workspace = product_workspace});
    first_expert += count;
  }
  return steps;
}

int64_t fused_moe_workspace_size(Device device, const FusedMoeSize& size) {
  int64_t most = layout_of(device, size).total;
  if (size.banks.size() == 1) return most;
  FusedMoeSize alone = size;
  for (const FusedMoeSize::Bank& bank : size.banks) {
    alone.banks = {bank};
    most = std::max(most, layout_of(device, alone).total);
  }
  return most;
}

void fused_moe(const FusedMoeArgs& a, const Stream& stream) {
  const Check check(kOp);
  const FusedMoeSize size = fused_moe_size(a.hidden_states, a.topk_ids, a.banks);
  const DType dtype = a.hidden_states.dtype;
  check.inner_contiguous("hidden_states", a.hidden_states);
  const Dim num_tokens{"num_tokens", a.hidden_states.size(0)};
  const Dim hidden_size{"hidden_size", a.hidden_states.size(1)};
  const Dim top_k{"top_k", a.topk_ids.size(1)};
  check_choice(check, "topk_ids", a.topk_ids, DType::kI32, num_tokens, top_k);
  check_choice(check, "topk_weights", a.topk_weights, DType::kF32, num_tokens, top_k);
  for (size_t i = 0; i < a.banks.size(); ++i) check_bank(check, a, i, stream);
  const TensorView* shared = pointer_to(a.shared);
  if (shared != nullptr) check_rows(check, "shared", *shared, num_tokens, hidden_size, dtype);
  check_rows(check, "out", a.out, num_tokens, hidden_size, dtype);
  check_workspace(check, a, layout_of(stream.device, size).total);

  const std::initializer_list<Check::Named> all = {{"out", &a.out},
                                                   {"hidden_states", &a.hidden_states},
                                                   {"topk_weights", &a.topk_weights},
                                                   {"topk_ids", &a.topk_ids},
                                                   {"workspace", &a.workspace}};
  check.device(stream.device, all);
  for (const Check::Named& written :
       {Check::Named{"out", &a.out}, Check::Named{"workspace", &a.workspace}}) {
    check_written(check, written, all);
    check_apart_from_banks(check, written.first, *written.second, a);
  }
  if (shared != nullptr) {
    check.device(stream.device, {{"shared", shared}});
    check.disjoint("workspace", a.workspace, "shared", *shared);
    check.disjoint_or_same_rows("out", a.out, "shared", *shared);
  }
  if (a.out.numel() == 0) return;
  dispatch(kOp, {&cpu::fused_moe, ERNIE_CUDA_FN(cuda::fused_moe)}, a, stream);
}

}  // namespace ernie
