#include "ops/moe.h"

#include <cmath>
#include <string>

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"
#include "ops/moe_checks.h"
#include "ops/moe_core.h"

namespace ernie {
namespace {

void check_num_experts(const Check& check, int64_t num_experts) {
  if (num_experts < 1 || num_experts > kMoeMaxExperts)
    check.fail("num_experts", "a value from 1 to " + std::to_string(kMoeMaxExperts),
               std::to_string(num_experts));
}

// Metadata: contiguous, of one dtype.
void check_packed(const Check& check, const char* name, const TensorView& t, DType dtype,
                  std::initializer_list<Dim> extents) {
  check.shape(name, t, extents);
  check.dtype(name, t, {dtype});
  check.contiguous(name, t);
}

// Rows of `like`'s dtype and width.
void check_rows(const Check& check, const char* name, const TensorView& t, Dim rows,
                const TensorView& like) {
  check.shape(name, t, {rows, {"hidden_size", like.size(1)}});
  check.dtype(name, t, {like.dtype});
  check.inner_contiguous(name, t);
}

void check_float_rows(const Check& check, const char* name, const TensorView& t) {
  check.rank(name, t, 2);
  check.dtype(name, t, {DType::kF32, DType::kBF16});
  check.inner_contiguous(name, t);
}

void check_sort(const Check& check, const MoeSortArgs& a, const Stream& stream) {
  check.rank("topk_ids", a.topk_ids, 2);
  const Dim num_tokens{"num_tokens", a.topk_ids.size(0)}, top_k{"top_k", a.topk_ids.size(1)};
  check_packed(check, "topk_ids", a.topk_ids, DType::kI32, {num_tokens, top_k});
  const int64_t num_entries = a.topk_ids.numel();
  if (num_entries > INT32_MAX)
    check.fail("topk_ids", "fewer than 2^31 entries", "shape " + shape_string(a.topk_ids));
  check_num_experts(check, a.num_experts);
  check_packed(check, "expert_offsets", a.expert_offsets, DType::kI64,
               {{"num_experts + 1", a.num_experts + 1}});
  check_packed(check, "inverse", a.inverse, DType::kI32, {num_tokens, top_k});
  const TensorView* source_rows = pointer_to(a.source_rows);
  if (source_rows != nullptr)
    check_packed(check, "source_rows", *source_rows, DType::kI32,
                 {{"num_tokens * top_k", num_entries}});
  check.rank("workspace", a.workspace, 1);
  check_packed(check, "workspace", a.workspace, DType::kU8, {{"bytes", a.workspace.size(0)}});
  const int64_t bytes = moe_sort_workspace_size(stream.device, num_entries, a.num_experts);
  if (a.workspace.size(0) < bytes)
    check.fail("workspace", "at least " + std::to_string(bytes) + " bytes",
               std::to_string(a.workspace.size(0)));

  const std::initializer_list<Check::Named> all = {{"expert_offsets", &a.expert_offsets},
                                                   {"inverse", &a.inverse},
                                                   {"topk_ids", &a.topk_ids},
                                                   {"source_rows", source_rows},
                                                   {"workspace", &a.workspace}};
  for (const Check::Named& named : all) {
    if (named.second == nullptr) continue;
    check.device(stream.device, {named});
    if (named.second != &a.topk_ids) check_written(check, named, all);
  }
}

}  // namespace

int64_t moe_sort_workspace_size(Device device, int64_t num_entries, int64_t num_experts) {
#if ERNIE_WITH_CUDA
  if (device.type == DeviceType::kCuda)
    return cuda::moe_sort_workspace_size(num_entries, num_experts);
#else
  (void)device, (void)num_entries, (void)num_experts;
#endif
  return 0;
}

void moe_route(const MoeRouteArgs& a, const Stream& stream) {
  const Check check("moe_route");
  check.rank("router_logits", a.router_logits, 2);
  check.dtype("router_logits", a.router_logits, {DType::kF32});
  check.inner_contiguous("router_logits", a.router_logits);
  const int64_t all_experts = a.router_logits.size(1);
  if (all_experts < 1 || all_experts > kMoeMaxExperts)
    check.fail("router_logits", "1 to " + std::to_string(kMoeMaxExperts) + " experts",
               "shape " + shape_string(a.router_logits));
  if (a.num_banks < 1 || all_experts % a.num_banks != 0)
    check.fail("num_banks", "a divisor of the " + std::to_string(all_experts) + " experts",
               std::to_string(a.num_banks));
  if (a.num_banks > 1 && !a.banks)
    check.fail("banks", "the bank of each token with num_banks=" + std::to_string(a.num_banks),
               "none");
  const int64_t num_experts = all_experts / a.num_banks;
  if (a.top_k < 1 || a.top_k > num_experts)
    check.fail("top_k", "a value from 1 to num_experts=" + std::to_string(num_experts),
               std::to_string(a.top_k));
  if (!(a.norm_min > 0) || std::isinf(a.norm_min))
    check.fail("norm_min", "a finite value > 0", std::to_string(a.norm_min));
  const Dim num_tokens{"num_tokens", a.router_logits.size(0)}, top_k{"top_k", a.top_k};
  if (a.num_banks > 1 && a.correction_bias.rank == 2)
    check_packed(check, "correction_bias", a.correction_bias, DType::kF32,
                 {{"num_banks", a.num_banks}, {"num_experts", num_experts}});
  else
    check_packed(check, "correction_bias", a.correction_bias, DType::kF32,
                 {{"num_experts", all_experts}});
  check_packed(check, "topk_weights", a.topk_weights, DType::kF32, {num_tokens, top_k});
  check_packed(check, "topk_ids", a.topk_ids, DType::kI32, {num_tokens, top_k});
  const TensorView* flags = pointer_to(a.flags);
  if (flags != nullptr) check_packed(check, "flags", *flags, DType::kU8, {num_tokens});
  const TensorView* banks = pointer_to(a.banks);
  if (banks != nullptr) check_packed(check, "banks", *banks, DType::kU8, {num_tokens});

  const std::initializer_list<Check::Named> all = {{"topk_weights", &a.topk_weights},
                                                   {"topk_ids", &a.topk_ids},
                                                   {"flags", flags},
                                                   {"router_logits", &a.router_logits},
                                                   {"correction_bias", &a.correction_bias},
                                                   {"banks", banks}};
  for (const Check::Named& named : all)
    if (named.second != nullptr) check.device(stream.device, {named});
  for (const Check::Named& written :
       {Check::Named{"topk_weights", &a.topk_weights}, Check::Named{"topk_ids", &a.topk_ids},
        Check::Named{"flags", flags}})
    if (written.second != nullptr) check_written(check, written, all);
  if (num_tokens.size == 0) return;
  dispatch("moe_route", {&cpu::moe_route, ERNIE_CUDA_FN(cuda::moe_route)}, a, stream);
}

void moe_sort(const MoeSortArgs& a, const Stream& stream) {
  check_sort(Check("moe_sort"), a, stream);
  dispatch("moe_sort", {&cpu::moe_sort, ERNIE_CUDA_FN(cuda::moe_sort)}, a, stream);
}

void moe_dispatch(const MoeDispatchArgs& a, const Stream& stream) {
  const Check check("moe_dispatch");
  check_float_rows(check, "hidden_states", a.hidden_states);
  const TensorView& topk_ids = a.sort.topk_ids;
  check.rank("topk_ids", topk_ids, 2);
  check.shape("topk_ids", topk_ids,
              {{"num_tokens", a.hidden_states.size(0)}, {"top_k", topk_ids.size(1)}});
  check_sort(check, a.sort, stream);
  check_rows(check, "permuted", a.permuted, {"num_tokens * top_k", topk_ids.numel()},
             a.hidden_states);
  check_written(check, {"permuted", &a.permuted},
                {{"hidden_states", &a.hidden_states},
                 {"topk_ids", &topk_ids},
                 {"expert_offsets", &a.sort.expert_offsets},
                 {"inverse", &a.sort.inverse},
                 {"source_rows", pointer_to(a.sort.source_rows)},
                 {"workspace", &a.sort.workspace}});
  for (const auto& [name, t] : {Check::Named{"expert_offsets", &a.sort.expert_offsets},
                                Check::Named{"inverse", &a.sort.inverse}})
    check.disjoint(name, *t, "hidden_states", a.hidden_states);
  check.device(stream.device, {{"permuted", &a.permuted}, {"hidden_states", &a.hidden_states}});
  dispatch("moe_dispatch", {&cpu::moe_dispatch, ERNIE_CUDA_FN(cuda::moe_dispatch)}, a, stream);
}

void moe_combine(const MoeCombineArgs& a, const Stream& stream) {
  const Check check("moe_combine");
  check_float_rows(check, "x", a.x);
  check.rank("inverse", a.inverse, 2);
  const Dim num_tokens{"num_tokens", a.inverse.size(0)}, top_k{"top_k", a.inverse.size(1)};
  check_packed(check, "inverse", a.inverse, DType::kI32, {num_tokens, top_k});
  check_rows(check, "x", a.x, {"num_tokens * top_k", a.inverse.numel()}, a.x);
  check_packed(check, "topk_weights", a.topk_weights, DType::kF32, {num_tokens, top_k});
  const TensorView* shared = pointer_to(a.shared);
  if (shared != nullptr) check_rows(check, "shared", *shared, num_tokens, a.x);
  check_rows(check, "out", a.out, num_tokens, a.x);
  check_written(check, {"out", &a.out},
                {{"x", &a.x}, {"inverse", &a.inverse}, {"topk_weights", &a.topk_weights}});
  if (shared != nullptr) check.disjoint_or_same_rows("out", a.out, "shared", *shared);
  check.device(
      stream.device,
      {{"out", &a.out}, {"x", &a.x}, {"topk_weights", &a.topk_weights}, {"inverse", &a.inverse}});
  if (shared != nullptr) check.device(stream.device, {{"shared", shared}});
  if (a.out.numel() == 0) return;
  dispatch("moe_combine", {&cpu::moe_combine, ERNIE_CUDA_FN(cuda::moe_combine)}, a, stream);
}

}  // namespace ernie
