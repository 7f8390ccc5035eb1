#include "ops/sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/checked.h"
#include "core/parallel.h"
#include "cpu/sampling.isa.h"
#include "ops/sampling_core.h"

namespace ernie::cpu {
namespace {

// ---------------------------------------------------------------------------- apply_penalties

void check_row_tokens(const Check& check, const ApplyPenaltiesArgs& a) {
  const int32_t* cu_tokens = a.cu_tokens.ptr<int32_t>();
  const int64_t num_seqs = a.logits.size(0), total = a.token_ids.size(0);
  if (cu_tokens[0] != 0) check.fail("cu_tokens", "0 first", std::to_string(cu_tokens[0]));
  for (int64_t s = 0; s < num_seqs; ++s) {
    if (cu_tokens[s + 1] < cu_tokens[s])
      check.fail("cu_tokens", "values that never fall",
                 std::to_string(cu_tokens[s + 1]) + " after " + std::to_string(cu_tokens[s]));
    const int32_t length = cu_tokens[s + 1] - cu_tokens[s];
    const int32_t prompt = a.prompt_lens.ptr<int32_t>()[s];
    if (prompt < 0 || prompt > length)
      check.fail("prompt_lens", "0 to " + std::to_string(length) + " in row " + std::to_string(s),
                 std::to_string(prompt));
  }
  if (cu_tokens[num_seqs] != total)
    check.fail("cu_tokens", "total=" + std::to_string(total) + " last",
               std::to_string(cu_tokens[num_seqs]));
  for (int64_t i = 0; i < total; ++i) {
    const int64_t id = a.token_ids.ptr<int64_t>()[i];
    if (id < 0 || id >= a.logits.size(1))
      check.fail("token_ids", "ids from 0 to " + std::to_string(a.logits.size(1) - 1),
                 std::to_string(id) + " at " + std::to_string(i));
  }
}

template <class T, class Allowed>
void check_rows(const Check& check, const char* name, const TensorView& values,
                const char* expected, const Allowed& allowed) {
  for (int64_t s = 0; s < values.size(0); ++s) {
    const T value = values.ptr<T>()[s];
    if (!allowed(value))
      check.fail(name, expected, std::to_string(value) + " in row " + std::to_string(s));
  }
}

struct Penalties {
  float repetition, presence, frequency;
  bool none() const { return repetition == 1.f && presence == 0.f && frequency == 0.f; }
};

// `seen` holds a zero per id, and does again afterwards.
void penalize_row(float* logits, const int64_t* ids, int64_t length, int64_t prompt_len,
                  const Penalties& p, uint32_t* seen) {
  constexpr uint32_t kSeen = uint32_t{1} << 31;  // the lower bits count the output
  for (int64_t i = 0; i < length; ++i) seen[ids[i]] = (seen[ids[i]] | kSeen) + (i >= prompt_len);
  for (int64_t i = 0; i < length; ++i) {
    uint32_t& marks = seen[ids[i]];
    if (marks == 0) continue;  // done when it came first
    const uint32_t count = marks & ~kSeen;
    marks = 0;
    float l = logits[ids[i]];
    l = l > 0 ? l / p.repetition : l * p.repetition;
    if (count > 0) {
      l -= p.frequency * static_cast<float>(count);
      l -= p.presence;
    }
    logits[ids[i]] = l;
  }
}

// ------------------------------------------------------------------------------------- sample

constexpr int64_t kWeighBlock = 512;   // logits whose weights are summed in float32
constexpr int64_t kMaximumBlock = 64;  // logits that share a maximum when the k largest are sought

// One row and its parameters.
struct Row {
  const float* logits;
  int64_t n;  // ids that may be chosen
  float temperature;
  int32_t top_k;
  float top_p, min_p;
  double u;
  float largest;
};

struct Candidate {
  uint64_t key;  // sample_key
  float weight;  // probability, up to a factor
};
bool before(const Candidate& a, const Candidate& b) { return a.key > b.key; }

float largest_logit(const float* logits, int64_t n) {
  using Fn = float (*)(const float*, int64_t);
  static const auto leaf = ERNIE_SELECT_ISA(Fn, largest_of);
  return leaf(logits, n);
}

int64_t first_of(const Row& row, float value) {
  using Fn = int64_t (*)(const float*, int64_t, float);
  static const auto leaf = ERNIE_SELECT_ISA(Fn, find_first);
  return leaf(row.logits, row.n, value);
}

float weigh_logits(const Row& row, const float* logits, int64_t n, float* weights) {
  using Fn = float (*)(const float*, int64_t, float, float, float*);
  static const auto leaf = ERNIE_SELECT_ISA(Fn, weigh);
  return leaf(logits, n, row.largest, row.temperature, weights);
}

std::vector<double> block_sums(const Row& row) {
  std::vector<double> sums(ceil_div(row.n, kWeighBlock));
  for (size_t b = 0; b < sums.size(); ++b) {
    const int64_t begin = static_cast<int64_t>(b) * kWeighBlock;
    sums[b] = weigh_logits(row, row.logits + begin, std::min(kWeighBlock, row.n - begin), nullptr);
  }
  return sums;
}

double sum_of(const std::vector<double>& values) {
  double sum = 0;
  for (double v : values) sum += v;
  return sum;
}

// The first index at which the running sum of weight(0), weight(1), ... exceeds `target`. Rounding
// may keep the whole sum from doing so: then the last index with any weight. `*target` becomes what
// is left before the index.
template <class Weight>
int64_t pick(int64_t n, const Weight& weight, double* target) {
  int64_t last = 0;
  double sum = 0, sum_before_last = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double w = weight(i);
    if (!(w > 0)) continue;
    last = i;
    sum_before_last = sum;
    sum += w;
    if (sum > *target) break;
  }
  *target -= sum_before_last;
  return last;
}

// No filter: the block in which the sum passes u, then the logit in it. Nothing is sorted or kept.
int64_t draw_from_all(const Row& row) {
  const std::vector<double> sums = block_sums(row);
  double target = row.u * sum_of(sums);
  const int64_t block =
      pick(static_cast<int64_t>(sums.size()), [&](int64_t b) { return sums[b]; }, &target);
  float weights[kWeighBlock];
  const int64_t begin = block * kWeighBlock, n = std::min(kWeighBlock, row.n - begin);
  weigh_logits(row, row.logits + begin, n, weights);
  return begin + pick(n, [&](int64_t i) { return weights[i]; }, &target);
}

// A logit that at least k are not below: the k-th largest maximum of blocks.
float bound_of_top_k(const Row& row, int64_t k) {
  const int64_t blocks = ceil_div(row.n, kMaximumBlock);
  if (blocks < k) return -INFINITY;
  std::vector<float> maxima(blocks);
  for (int64_t b = 0; b < blocks; ++b)
    maxima[b] = largest_logit(row.logits + b * kMaximumBlock,
                              std::min(kMaximumBlock, row.n - b * kMaximumBlock));
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<>());
  return maxima[k - 1];
}

// A logit below which every weight is less than `weight`, with room for the rounding of weights.
float bound_of_weight(const Row& row, double weight) {
  const double logit = row.largest + row.temperature * std::log(0.99 * weight);
  return std::nextafter(static_cast<float>(std::max<double>(logit, -FLT_MAX)), -INFINITY);
}

// All that can pass the filters (the largest always does), in ascending id order, and `*total`, the
// weight of what top_p refers to when it is not the top_k candidates.
std::vector<Candidate> candidates_of(const Row& row, bool has_top_k, double* total) {
  float bound = -INFINITY;
  if (has_top_k) {
    bound = bound_of_top_k(row, row.top_k);
  } else if (row.top_p < 1.f) {
    // What weighs less than this adds up to less than 1 - top_p: the prefix ends before it.
    *total = sum_of(block_sums(row));
    bound = bound_of_weight(row, (1.0 - row.top_p) * *total / static_cast<double>(row.n));
  }
  if (row.top_p == 1.f && row.min_p > 0.f) bound = std::max(bound, bound_of_weight(row, row.min_p));

  using Fn = int64_t (*)(const float*, int64_t, float, int32_t*);
  static const auto gather = ERNIE_SELECT_ISA(Fn, gather_at_least);
  const auto ids = std::make_unique_for_overwrite<int32_t[]>(row.n);
  const int64_t count = gather(row.logits, row.n, std::min(bound, row.largest), ids.get());

  std::vector<float> logits(count), weights(count);
  for (int64_t i = 0; i < count; ++i) logits[i] = row.logits[ids[i]];
  weigh_logits(row, logits.data(), count, weights.data());
  std::vector<Candidate> candidates(count);
  for (int64_t i = 0; i < count; ++i)
    candidates[i] = {sample_key(logits[i], static_cast<uint32_t>(ids[i])), weights[i]};
  return candidates;
}

// The key of the k-th candidate in descending order.
uint64_t key_of_kth(std::vector<Candidate> candidates, int64_t k) {
  std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), before);
  return candidates[k - 1].key;
}

// The key of the last candidate of the shortest prefix, in descending order, whose weights sum to
// `mass`: like the search for a median, halving the part where it must lie.
uint64_t key_of_mass(std::vector<Candidate> candidates, double mass) {
  auto first = candidates.begin(), last = candidates.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, before);
    double upper = 0;
    for (auto c = first; c != middle; ++c) upper += c->weight;
    if (upper >= mass) {
      last = middle;
    } else {
      mass -= upper;
      first = middle;
    }
  }
  return first->key;
}

int64_t draw_filtered(const Row& row) {
  const bool has_top_k = row.top_k > 0 && row.top_k < row.n;
  double total = 0;
  std::vector<Candidate> candidates = candidates_of(row, has_top_k, &total);
  const auto keep = [&](const auto& stays) {
    std::erase_if(candidates, [&](const Candidate& c) { return !stays(c); });
  };
  // min_p may have left fewer than k.
  if (has_top_k && row.top_k < static_cast<int64_t>(candidates.size())) {
    const uint64_t cut = key_of_kth(candidates, row.top_k);
    keep([cut](const Candidate& c) { return c.key >= cut; });
  }
  if (row.top_p < 1.f) {
    if (has_top_k)
      for (const Candidate& c : candidates) total += c.weight;
    const uint64_t cut = key_of_mass(candidates, row.top_p * total);
    keep([cut](const Candidate& c) { return c.key >= cut; });
  }
  keep([&row](const Candidate& c) { return c.weight >= row.min_p; });

  double kept = 0;
  for (const Candidate& c : candidates) kept += c.weight;
  double target = row.u * kept;
  const int64_t chosen = pick(
      static_cast<int64_t>(candidates.size()), [&](int64_t i) { return candidates[i].weight; },
      &target);
  return sample_key_id(candidates[chosen].key);
}

int64_t draw(Row row) {
  row.largest = largest_logit(row.logits, row.n);
  if (!std::isfinite(row.largest)) return -1;
  if (row.temperature == 0.f || row.top_k == 1) return first_of(row, row.largest);
  const bool filtered = (row.top_k > 0 && row.top_k < row.n) || row.top_p < 1.f || row.min_p > 0.f;
  return filtered ? draw_filtered(row) : draw_from_all(row);
}

}  // namespace

void apply_penalties(const ApplyPenaltiesArgs& a, const Stream&) {
  const Check check("apply_penalties");
  check_row_tokens(check, a);
  const auto finite = [](float v) { return std::isfinite(v); };
  check_rows<float>(check, "repetition_penalty", a.repetition_penalty, "finite values > 0",
                    [](float v) { return v > 0 && std::isfinite(v); });
  check_rows<float>(check, "presence_penalty", a.presence_penalty, "finite values", finite);
  check_rows<float>(check, "frequency_penalty", a.frequency_penalty, "finite values", finite);

  const int32_t* cu_tokens = a.cu_tokens.ptr<int32_t>();
  parallel_for(a.logits.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> seen;
    for (int64_t s = begin; s < end; ++s) {
      const Penalties p{a.repetition_penalty.ptr<float>()[s], a.presence_penalty.ptr<float>()[s],
                        a.frequency_penalty.ptr<float>()[s]};
      if (p.none() || cu_tokens[s] == cu_tokens[s + 1]) continue;
      seen.resize(a.logits.size(1));
      penalize_row(a.logits.ptr<float>() + s * a.logits.step(0),
                   a.token_ids.ptr<int64_t>() + cu_tokens[s], cu_tokens[s + 1] - cu_tokens[s],
                   a.prompt_lens.ptr<int32_t>()[s], p, seen.data());
    }
  });
}

void sample(const SampleArgs& a, const Stream&) {
  const Check check("sample");
  check_rows<float>(check, "temperature", a.temperature, "finite values >= 0",
                    [](float v) { return v >= 0 && std::isfinite(v); });
  check_rows<int32_t>(check, "top_k", a.top_k, "values >= 0", [](int32_t v) { return v >= 0; });
  check_rows<float>(check, "top_p", a.top_p, "values in (0, 1]",
                    [](float v) { return v > 0 && v <= 1; });
  check_rows<float>(check, "min_p", a.min_p, "values in [0, 1]",
                    [](float v) { return v >= 0 && v <= 1; });

  parallel_for(a.logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s)
      a.out.ptr<int64_t>()[s] =
          draw({.logits = a.logits.ptr<float>() + s * a.logits.step(0),
                .n = a.vocab_limit,
                .temperature = a.temperature.ptr<float>()[s],
                .top_k = a.top_k.ptr<int32_t>()[s],
                .top_p = a.top_p.ptr<float>()[s],
                .min_p = a.min_p.ptr<float>()[s],
                .u = sample_uniform(a.seed.ptr<int64_t>()[s], a.position.ptr<int64_t>()[s]),
                .largest = 0.f});
  });
}

}  // namespace ernie::cpu
