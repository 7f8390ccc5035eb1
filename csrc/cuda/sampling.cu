#include "core/checked.h"
#include "cuda/common.cuh"
#include "cuda/vector.cuh"
#include "ops/sampling.h"
#include "ops/sampling_core.h"

namespace ernie::cuda {
namespace {

using uint64 = unsigned long long;  // the type that atomicAdd and the shuffles take

// ------------------------------------------------------------------------------------- penalties

constexpr int kPenaltyThreads = 256;
constexpr int kTile = 8192;  // ids that one block counts: 32 KiB of shared memory

struct PenaltyRows {
  float* logits;
  int64_t stride, num_seqs, vocab_size;
  const int64_t* token_ids;
  const int32_t* cu_tokens;
  const int32_t* prompt_lens;
  const float *repetition, *presence, *frequency;
};

// Blocks x walk the rows, y the tiles of the vocabulary; a block counts the row's tokens that fall
// into its tile, then changes those logits. Bound by reading the tokens once a tile, from L2; the
// counts are integers, so their order is free. Ids outside the vocabulary are passed over.
__global__ void __launch_bounds__(kPenaltyThreads) apply_penalties_kernel(const PenaltyRows a) {
  ERNIE_SHARED(unsigned, seen, [kTile]);  // 2 * occurrences in the output, + 1 if in the prompt
  for (int64_t row = blockIdx.x; row < a.num_seqs; row += gridDim.x) {
    const float repetition = a.repetition[row], presence = a.presence[row];
    const float frequency = a.frequency[row];
    if (repetition == 1.f && presence == 0.f && frequency == 0.f) continue;
    const int64_t first = a.cu_tokens[row], last = a.cu_tokens[row + 1];
    const int64_t output = first + a.prompt_lens[row];
    float* logits = a.logits + row * a.stride;

    const int64_t tile_step = int64_t{gridDim.y} * kTile;
    for (int64_t tile = int64_t{blockIdx.y} * kTile; tile < a.vocab_size; tile += tile_step) {
      for (int i = threadIdx.x; i < kTile; i += kPenaltyThreads) seen[i] = 0;
      __syncthreads();
      const int64_t extent = a.vocab_size - tile < kTile ? a.vocab_size - tile : kTile;
      for (int64_t i = first + threadIdx.x; i < last; i += kPenaltyThreads) {
        const int64_t id = a.token_ids[i] - tile;
        if (id < 0 || id >= extent) continue;
        if (i >= output)
          atomicAdd(&seen[id], 2u);
        else
          atomicOr(&seen[id], 1u);
      }
      __syncthreads();
      for (int i = threadIdx.x; i < extent; i += kPenaltyThreads) {
        const unsigned s = seen[i];
        if (s == 0) continue;
        float l = logits[tile + i];
        l = l > 0.f ? l / repetition : l * repetition;
        if (s >= 2) l = (l - frequency * static_cast<float>(s / 2)) - presence;
        logits[tile + i] = l;
      }
      // No barrier here: each thread clears for the next tile what it alone has just read.
    }
  }
}

// ------------------------------------------------------------------------------------- sampling
//
// No sort: the candidates that stay are a prefix of the descending order, so one bound describes
// them. It is found digit by digit from histograms in shared memory. Probabilities are integers,
// multiples of 2^-mass_bits of the largest one: their sums are exact in any order, so a row's token
// depends neither on the schedule nor on the number of threads.

constexpr int kThreads = 512, kWarps = kThreads / kWarpSize;
constexpr int kBins = 2048, kBinsPerThread = kBins / kThreads;
constexpr unsigned kAllLanes = 0xffffffffu;

struct SampleRows {
  int64_t* out;
  const float* logits;
  int64_t stride, num_seqs, size;  // size: vocab_limit
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
  const int64_t *seed, *position;
  float mass_one;  // 2^mass_bits
};

struct Row {
  const float* logits;
  int64_t size;
  float best, temperature, mass_one;

  // How far below the best, in units of the exponent. Never NaN: best is finite.
  __device__ float distance(float l) const { return (best - l) / temperature; }
  __device__ float probability(float l) const { return expf(-distance(l)); }  // of the best's
  __device__ uint64 mass(float l) const { return static_cast<uint64>(probability(l) * mass_one); }
};

// The place of a candidate in descending order, smaller is better: first the distance, in steps
// that spread the likely candidates over the bins, then the exact order of logits and ids.
struct Place {
  uint32_t distance;
  uint64 rank;  // ~sample_key: the order of logits, then the id

  __device__ bool operator<=(const Place& o) const {
    return distance < o.distance || (distance == o.distance && rank <= o.rank);
  }
};

__device__ __forceinline__ Place place_of(const Row& row, float l, uint32_t id) {
  const float d = row.distance(l);
  constexpr float kStep = 1 << 27, kReach = 32.f;  // beyond e^-32 the logits alone decide
  return {d < kReach ? static_cast<uint32_t>(d * kStep) : 0xffffffffu, ~sample_key(l, id)};
}

// A place in 9 digits of 11, 11 and 10 bits for each of its 32-bit words.
constexpr int kLevels = 9;
struct Digit {
  int shift;
  uint32_t mask;
};
__device__ __forceinline__ Digit digit_at(int level) {
  const int part = level % 3;
  return {part == 0 ? 21 : part == 1 ? 10 : 0, part == 2 ? 0x3ffu : 0x7ffu};
}
__device__ __forceinline__ uint32_t word_at(const Place& p, int level) {
  return level < 3   ? p.distance
         : level < 6 ? static_cast<uint32_t>(p.rank >> 32)
                     : static_cast<uint32_t>(p.rank);
}
__device__ __forceinline__ uint32_t bin_of(const Place& p, int level) {
  const Digit digit = digit_at(level);
  return word_at(p, level) >> digit.shift & digit.mask;
}
// `p` with the digit replaced by `bin`, and all lower ones by zeros or ones.
__device__ __forceinline__ Place with_digit(const Place& p, int level, uint32_t bin, bool ones) {
  const Digit digit = digit_at(level);
  const uint32_t below = (1u << digit.shift) - 1;
  const uint32_t word = (word_at(p, level) & ~(digit.mask << digit.shift | below)) |
                        bin << digit.shift | (ones ? below : 0);
  const uint64 fill = ones ? ~0ull : 0;
  if (level < 3) return {word, fill};
  if (level < 6) return {p.distance, uint64{word} << 32 | (fill & 0xffffffffu)};
  return {p.distance, (p.rank & ~0xffffffffull) | word};
}

// Calls f(logit, id) for every id once, in 16-byte loads but for up to three ids at either end.
template <class F>
__device__ __forceinline__ void for_each_logit(const Row& row, const F& f) {
  const int64_t address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row.logits) / 4);
  const int64_t to_aligned = -address & 3;
  const int64_t head = to_aligned < row.size ? to_aligned : row.size;
  const int64_t vecs = (row.size - head) / 4, edges = row.size - 4 * vecs;
#pragma unroll 4
  for (int64_t v = threadIdx.x; v < vecs; v += kThreads) {
    const int64_t id = head + 4 * v;
    const Vec<float> four = load_vec<true>(row.logits + id, 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) f(get(four, j), static_cast<uint32_t>(id + j));
  }
  if (const int64_t e = threadIdx.x; e < edges) {
    const int64_t id = e < head ? e : e + 4 * vecs;
    f(row.logits[id], static_cast<uint32_t>(id));
  }
}

__device__ __forceinline__ uint64 warp_inclusive_sum(uint64 v) {
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint64 below = __shfl_up_sync(kAllLanes, v, offset);
    if (static_cast<int>(threadIdx.x % kWarpSize) >= offset) v += below;
  }
  return v;
}

struct Scanned {
  uint64 before, total;  // of the threads below this one, and of all
};
// `partial` holds kWarps values; the caller synchronises before it uses it again.
__device__ __forceinline__ Scanned block_scan(uint64 v, uint64* partial) {
  const int warp = threadIdx.x / kWarpSize;
  const uint64 inclusive = warp_inclusive_sum(v);
  if (threadIdx.x % kWarpSize == kWarpSize - 1) partial[warp] = inclusive;
  __syncthreads();
  Scanned s = {inclusive - v, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) s.before += partial[w];
    s.total += partial[w];
  }
  return s;
}

// Shared memory of one row.
struct Bins {
  uint64* mass;     // [kBins]
  unsigned* count;  // [kBins]
  uint64* partial;  // [kWarps]
  uint64* found;    // [3]: bin, weight before it, candidates in it
};

// The shortest prefix of the order, within `end`, that holds `top_k` candidates or a share `top_p`
// of the mass; returns its last place. One pass over the row a digit, until the digits so far tell
// the last candidate from the next: as a rule two.
template <bool kByMass>
__device__ Place prefix_end(const Row& row, const Place& end, uint64 top_k, float top_p,
                            const Bins& bins) {
  Place first = {0, 0}, last = end;
  uint64 wanted = top_k;
  for (int level = 0; level < kLevels; ++level) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      bins.count[i] = 0;
      bins.mass[i] = 0;
    }
    __syncthreads();
    for_each_logit(row, [&](float l, uint32_t id) {
      const Place p = place_of(row, l, id);
      if (!(first <= p && p <= last)) return;
      const uint32_t bin = bin_of(p, level);
      atomicAdd(&bins.count[bin], 1u);
      if (kByMass)
        if (const uint64 m = row.mass(l); m > 0) atomicAdd(&bins.mass[bin], m);
    });
    __syncthreads();

    const int own = threadIdx.x * kBinsPerThread;
    const auto weight = [&](int bin) -> uint64 {
      return kByMass ? bins.mass[bin] : bins.count[bin];
    };
    uint64 own_weight = 0;
    for (int bin = own; bin < own + kBinsPerThread; ++bin) own_weight += weight(bin);
    const Scanned s = block_scan(own_weight, bins.partial);
    if (kByMass && level == 0) {
      const auto share =
          static_cast<uint64>(ceil(static_cast<double>(top_p) * static_cast<double>(s.total)));
      wanted = share < 1 ? 1 : share < s.total ? share : s.total;
    }
    uint64 before = s.before;
    for (int bin = own; bin < own + kBinsPerThread; ++bin) {
      if (before < wanted && wanted <= before + weight(bin)) {
        bins.found[0] = bin;
        bins.found[1] = before;
        bins.found[2] = bins.count[bin];
      }
      before += weight(bin);
    }
    __syncthreads();
    const auto bin = static_cast<uint32_t>(bins.found[0]);
    const uint64 candidates = bins.found[2];
    wanted -= bins.found[1];
    const Place lower = with_digit(first, level, bin, false);
    const Place upper = with_digit(first, level, bin, true);
    if (first <= lower) first = lower;
    if (upper <= last) last = upper;
    // No barrier here: what comes next clears the bins, last read before the barrier above; `found`
    // and `partial` are written again only after the next pass's own.
    if (candidates == 1 || (!kByMass && candidates == wanted)) break;
  }
  return last;
}

// The first id, in ascending order, whose cumulative mass among the kept exceeds u of the total.
// Warp w owns the w-th stretch of ids: all sum theirs, one walks through its own again.
__device__ __forceinline__ void draw(const Row& row, const Place& last, float min_p, double u,
                                     int64_t* out, uint64* partial) {
  const auto kept = [&](int64_t id) -> uint64 {
    const float l = row.logits[id];
    const float p = row.probability(l);
    const bool stays = p >= min_p && place_of(row, l, static_cast<uint32_t>(id)) <= last;
    return stays ? static_cast<uint64>(p * row.mass_one) : 0;
  };
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t stretch = (row.size + kWarps - 1) / kWarps;
  const int64_t begin = warp * stretch;
  const int64_t end = begin + stretch < row.size ? begin + stretch : row.size;

  uint64 sum = 0;
#pragma unroll 4
  for (int64_t id = begin + lane; id < end; id += kWarpSize) sum += kept(id);
  sum = warp_inclusive_sum(sum);
  if (lane == kWarpSize - 1) partial[warp] = sum;
  __syncthreads();
  uint64 before = 0, total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += partial[w];
    total += partial[w];
  }
  // u is a multiple of 2^-53, so that this floor of u * total is exact.
  const auto bits = static_cast<uint64>(u * 9007199254740992.0);
  const auto target = static_cast<uint64>(static_cast<unsigned __int128>(bits) * total >> 53);
  if (target < before || target >= before + partial[warp]) return;

  for (int64_t base = begin; base < end; base += kWarpSize) {
    const uint64 up_to = before + warp_inclusive_sum(base + lane < end ? kept(base + lane) : 0);
    const unsigned beyond = __ballot_sync(kAllLanes, up_to > target);
    if (beyond != 0) {
      if (lane == __ffs(static_cast<int>(beyond)) - 1) *out = base + lane;
      return;
    }
    before = __shfl_sync(kAllLanes, up_to, kWarpSize - 1);
  }
}

// The largest sample_key of the row, to all threads; 0 where a logit is NaN.
__device__ __forceinline__ uint64 best_key(const Row& row, uint64* partial) {
  uint64 best = 0;
  bool nan = false;
  for_each_logit(row, [&](float l, uint32_t id) {
    const uint64 key = sample_key(l, id);
    best = key > best ? key : best;
    nan |= l != l;
  });
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const uint64 other = __shfl_xor_sync(kAllLanes, best, offset);
    best = other > best ? other : best;
  }
  if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = best;
  const bool usable = __syncthreads_or(nan) == 0;
  best = 0;
  for (int w = 0; w < kWarps; ++w) best = partial[w] > best ? partial[w] : best;
  __syncthreads();  // before `partial` is used again
  return usable ? best : 0;
}

// One block per row. Bound by reading the row from L2, at what one multiprocessor takes in: once
// for the largest logit, about twice each for top_k and top_p where they are set, once to draw.
__global__ void __launch_bounds__(kThreads, 1) sample_kernel(const SampleRows a) {
  ERNIE_SHARED(uint64, mass, [kBins]);
  ERNIE_SHARED(unsigned, count, [kBins]);
  ERNIE_SHARED(uint64, partial, [kWarps]);
  ERNIE_SHARED(uint64, found, [3]);
  const Bins bins = {mass, count, partial, found};

  for (int64_t t = blockIdx.x; t < a.num_seqs; t += gridDim.x) {
    Row row = {a.logits + t * a.stride, a.size, 0.f, a.temperature[t], a.mass_one};
    const uint64 best = best_key(row, partial);
    if (best != 0) row.best = row.logits[sample_key_id(best)];
    const bool usable = best != 0 && fabsf(row.best) < INFINITY;
    const int64_t top_k = a.top_k[t];
    if (!usable || row.temperature == 0.f || top_k == 1) {
      if (threadIdx.x == 0) a.out[t] = usable ? int64_t{sample_key_id(best)} : -1;
      continue;
    }

    Place last = {0xffffffffu, ~0ull};
    if (top_k > 0 && top_k < a.size)
      last = prefix_end<false>(row, last, static_cast<uint64>(top_k), 0.f, bins);
    if (a.top_p[t] < 1.f) last = prefix_end<true>(row, last, 0, a.top_p[t], bins);
    draw(row, last, a.min_p[t], sample_uniform(a.seed[t], a.position[t]), a.out + t, partial);
    __syncthreads();  // before the next row uses `partial`
  }
}

}  // namespace

// ------------------------------------------------------------------------------------- launchers

void apply_penalties(const ApplyPenaltiesArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  const int64_t num_seqs = a.logits.size(0), vocab_size = a.logits.size(1);
  launch(apply_penalties_kernel,
         {.grid = grid_of_items(num_seqs, vocab_size, kTile),
          .block = kPenaltyThreads,
          .stream = stream_of(stream)},
         PenaltyRows{.logits = a.logits.ptr<float>(),
                     .stride = a.logits.step(0),
                     .num_seqs = num_seqs,
                     .vocab_size = vocab_size,
                     .token_ids = a.token_ids.ptr<int64_t>(),
                     .cu_tokens = a.cu_tokens.ptr<int32_t>(),
                     .prompt_lens = a.prompt_lens.ptr<int32_t>(),
                     .repetition = a.repetition_penalty.ptr<float>(),
                     .presence = a.presence_penalty.ptr<float>(),
                     .frequency = a.frequency_penalty.ptr<float>()});
}

void sample(const SampleArgs& a, const Stream& stream) {
  const DeviceGuard guard(stream.device);
  // As fine as sums over the vocabulary leave room for in 62 bits.
  int mass_bits = 62;
  for (int64_t n = a.vocab_limit; n > 0; n /= 2) --mass_bits;
  launch(sample_kernel,
         {.grid = grid_of_rows(a.logits.size(0)), .block = kThreads, .stream = stream_of(stream)},
         SampleRows{.out = a.out.ptr<int64_t>(),
                    .logits = a.logits.ptr<float>(),
                    .stride = a.logits.step(0),
                    .num_seqs = a.logits.size(0),
                    .size = a.vocab_limit,
                    .temperature = a.temperature.ptr<float>(),
                    .top_k = a.top_k.ptr<int32_t>(),
                    .top_p = a.top_p.ptr<float>(),
                    .min_p = a.min_p.ptr<float>(),
                    .seed = a.seed.ptr<int64_t>(),
                    .position = a.position.ptr<int64_t>(),
                    .mass_one = static_cast<float>(uint64{1} << mass_bits)});
}

int64_t sample_workspace_size(int64_t, int64_t) { return 0; }  // shared memory is enough

}  // namespace ernie::cuda
