#include "ops/moe.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>

#include "core/check.h"
#include "core/checked.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/moe.isa.h"
#include "ops/moe_core.h"
#include "ops/sampling_core.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kLogitsPerChunk = 1024;
constexpr int64_t kBytesPerChunk = 32768;

// --------------------------------------------------------------------------------------- route

float sum_of(const float* values, int64_t n) {
  using Fn = float (*)(const float*, int64_t);
  static const auto leaf = ERNIE_SELECT_ISA(Fn, moe_sum);
  return leaf(values, n);
}

bool scores_of(const float* logits, const float* bias, int64_t n, float* p, float* scores) {
  using Fn = bool (*)(const float*, const float*, int64_t, float*, float*);
  static const auto leaf = ERNIE_SELECT_ISA(Fn, moe_scores_row);
  return leaf(logits, bias, n, p, scores);
}

void check_banks(const MoeRouteArgs& a) {
  if (!a.banks) return;
  const uint8_t* banks = a.banks->ptr<uint8_t>();
  for (int64_t t = 0; t < a.banks->size(0); ++t)
    if (banks[t] >= a.num_banks)
      Check("moe_route")
          .fail("banks", "banks from 0 to " + std::to_string(a.num_banks - 1),
                std::to_string(banks[t]) + " at token " + std::to_string(t));
}

// False for a row that is not finite.
bool route_row(const MoeRouteArgs& a, int64_t t, float* weights, int32_t* ids) {
  const int64_t n = a.router_logits.size(1) / a.num_banks, k = a.top_k;
  const int64_t first = a.banks ? a.banks->ptr<uint8_t>()[t] * n : 0;
  const float* logits = a.router_logits.ptr<float>() + t * a.router_logits.step(0) + first;
  const float* bias = a.correction_bias.ptr<float>() + first;
  auto* keys = static_cast<uint64_t*>(
      scratch(ScratchSlot::kRows, n * static_cast<int64_t>(sizeof(uint64_t) + 2 * sizeof(float))));
  auto* p = reinterpret_cast<float*>(keys + n);
  float* scores = p + n;
  if (!scores_of(logits, bias, n, p, scores)) {
    for (int64_t j = 0; j < k; ++j) {
      ids[j] = static_cast<int32_t>(first + j);
      weights[j] = moe_nan();
    }
    return false;
  }
  // The order of logits that are sampled: the larger first, of equal ones the lower id.
  for (int64_t e = 0; e < n; ++e) keys[e] = sample_key(scores[e], static_cast<uint32_t>(e));
  std::partial_sort(keys, keys + k, keys + n, std::greater<>());
  for (int64_t j = 0; j < k; ++j) {
    const uint32_t e = sample_key_id(keys[j]);
    ids[j] = static_cast<int32_t>(first + e);
    weights[j] = p[e];
  }
  const float divisor = std::max(sum_of(weights, k), a.norm_min);
  for (int64_t j = 0; j < k; ++j) weights[j] = weights[j] / divisor;
  return true;
}

// ---------------------------------------------------------------------------------------- sort

void check_ids(const char* op, const MoeSortArgs& a) {
  const int32_t* ids = a.topk_ids.ptr<int32_t>();
  const int64_t num_entries = a.topk_ids.numel(), top_k = a.topk_ids.size(1);
  for (int64_t i = 0; i < num_entries; ++i)
    if (ids[i] < 0 || ids[i] >= a.num_experts)
      Check(op).fail("topk_ids", "experts from 0 to " + std::to_string(a.num_experts - 1),
                     std::to_string(ids[i]) + " at token " + std::to_string(i / top_k) + ", slot " +
                         std::to_string(i % top_k));
}

// By counting: expert_offsets serve as the cursors. The entries are placed from the last to the
// first, each before the one placed last, which leaves a cursor at its expert's first place.
void sort_entries(const MoeSortArgs& a) {
  const int32_t* ids = a.topk_ids.ptr<int32_t>();
  const int64_t num_entries = a.topk_ids.numel(), top_k = a.topk_ids.size(1);
  int64_t* ends = a.expert_offsets.ptr<int64_t>();  // of expert e, once summed
  std::fill_n(ends, a.num_experts + 1, 0);
  for (int64_t i = 0; i < num_entries; ++i) ++ends[ids[i]];
  for (int64_t e = 1; e < a.num_experts; ++e) ends[e] += ends[e - 1];
  ends[a.num_experts] = num_entries;

  int32_t* inverse = a.inverse.ptr<int32_t>();
  int32_t* source_rows = a.source_rows ? a.source_rows->ptr<int32_t>() : nullptr;
  for (int64_t i = num_entries - 1; i >= 0; --i) {
    const int64_t place = --ends[ids[i]];
    inverse[i] = static_cast<int32_t>(place);
    if (source_rows != nullptr) source_rows[place] = static_cast<int32_t>(i / top_k);
  }
}

// ------------------------------------------------------------------------------------- combine

void check_places(const MoeCombineArgs& a) {
  const int32_t* places = a.inverse.ptr<int32_t>();
  const int64_t num_entries = a.inverse.numel(), top_k = a.inverse.size(1);
  for (int64_t i = 0; i < num_entries; ++i)
    if (places[i] < 0 || places[i] >= num_entries)
      Check("moe_combine")
          .fail("inverse", "rows from 0 to " + std::to_string(num_entries - 1),
                std::to_string(places[i]) + " at token " + std::to_string(i / top_k) + ", slot " +
                    std::to_string(i % top_k));
}

template <class T>
void combine_t(const MoeCombineArgs& a) {
  using RowFn =
      void (*)(const T*, int64_t, const int32_t*, const float*, int64_t, const T*, T*, int64_t);
  static const RowFn row = ERNIE_SELECT_ISA(RowFn, moe_combine_row);
  const int64_t top_k = a.inverse.size(1), hidden_size = a.out.size(1);
  const int64_t bytes_per_token = (top_k + 1) * hidden_size * static_cast<int64_t>(sizeof(T));
  parallel_for(a.out.size(0), ceil_div(kBytesPerChunk, bytes_per_token),
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t)
                   row(a.x.ptr<T>(), a.x.step(0), a.inverse.ptr<int32_t>() + t * top_k,
                       a.topk_weights.ptr<float>() + t * top_k, top_k,
                       a.shared ? a.shared->ptr<T>() + t * a.shared->step(0) : nullptr,
                       a.out.ptr<T>() + t * a.out.step(0), hidden_size);
               });
}

}  // namespace

void moe_route(const MoeRouteArgs& a, const Stream&) {
  check_banks(a);
  const int64_t num_tokens = a.router_logits.size(0);
  parallel_for(num_tokens, ceil_div(kLogitsPerChunk, a.router_logits.size(1) / a.num_banks),
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) {
                   const bool finite = route_row(a, t, a.topk_weights.ptr<float>() + t * a.top_k,
                                                 a.topk_ids.ptr<int32_t>() + t * a.top_k);
                   if (!finite && a.flags) a.flags->ptr<uint8_t>()[t] = 1;
                 }
               });
}

void moe_sort(const MoeSortArgs& a, const Stream&) {
  check_ids("moe_sort", a);
  sort_entries(a);
}

void moe_dispatch(const MoeDispatchArgs& a, const Stream&) {
  check_ids("moe_dispatch", a.sort);
  sort_entries(a.sort);
  const int64_t top_k = a.sort.inverse.size(1), itemsize = size_of(a.hidden_states.dtype);
  const int64_t row_bytes = a.hidden_states.size(1) * itemsize;
  if (row_bytes == 0 || top_k == 0) return;
  parallel_for(a.hidden_states.size(0), ceil_div(kBytesPerChunk, (top_k + 1) * row_bytes),
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) {
                   const char* row =
                       a.hidden_states.ptr<char>() + t * a.hidden_states.step(0) * itemsize;
                   for (int64_t j = 0; j < top_k; ++j) {
                     const int64_t place = a.sort.inverse.ptr<int32_t>()[t * top_k + j];
                     std::memcpy(a.permuted.ptr<char>() + place * a.permuted.step(0) * itemsize,
                                 row, row_bytes);
                   }
                 }
               });
}

void moe_combine(const MoeCombineArgs& a, const Stream&) {
  check_places(a);
  a.x.dtype == DType::kBF16 ? combine_t<bf16>(a) : combine_t<float>(a);
}

}  // namespace ernie::cpu
