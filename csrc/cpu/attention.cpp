// One work item is a tile of query rows (tokens x the query heads of one kv head), against the keys
// of one sequence. Keys and values of 64 tokens at a time are turned into panels in cache, read
// once for all rows of the tile, and multiplied by the leaves of gemm.isa.h: prefill and decode run
// the same code, which is why they give the same bits.
#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "cpu/attention.isa.h"
#include "cpu/gemm.isa.h"

namespace ernie::cpu {
namespace {

constexpr int64_t kTileKeys = 64;  // a multiple of every block size, so a tile is whole pages
constexpr int64_t kTileRows = 96;  // query rows: the panels of a key tile are made once for them
static_assert(kAttentionSplit % kTileKeys == 0);

// A tile of query rows: tokens [first, first + tokens) of sequence `seq`, heads of `kv_head`.
struct Tile {
  int64_t seq, kv_head, first, tokens;
};

// Running result of a tile's rows: a fresh one per split.
struct Partial {
  float* acc;  // [rows, padded head_dim]
  float* maximum;
  float* sum;

  void reset(int64_t rows, int64_t width) const {
    std::fill_n(acc, rows * width, 0.f);
    std::fill_n(maximum, rows, -INFINITY);
    std::fill_n(sum, rows, 0.f);
  }
};

struct Sizes {
  int64_t group;  // query heads per kv head
  int64_t head_dim;
  int64_t width;  // head_dim padded to whole panels
  int64_t block_size;

  int64_t partial_floats(int64_t rows) const { return rows * (width + 2); }
  Partial partial_at(float* p, int64_t rows) const {
    return {p, p + rows * width, p + rows * width + rows};
  }
};

using GemmFn = void (*)(const GemmBlock&);

// T is the dtype of queries, keys and values; Q what the scores are multiplied in: float, or
// bfloat16 where its dot product is the faster instruction.
template <class T, class Q>
struct Leaves {
  GemmFn gemm = ERNIE_SELECT_ISA(GemmFn, gemm_f32_f32);
  GemmFn score_gemm = std::is_same_v<Q, bf16> ? ERNIE_SELECT_ISA(GemmFn, gemm_bf16_bf16) : gemm;
  void (*widen)(const T*, float*, int64_t,
                int64_t) = ERNIE_SELECT_ISA(void (*)(const T*, float*, int64_t, int64_t),
                                            widen_row);
  using PackKeys = void (*)(const T*, int64_t, int64_t, Q*);
  PackKeys pack_keys = ERNIE_SELECT_ISA(PackKeys, pack_keys);
  void (*pack_value)(const T*, int64_t, float*,
                     int64_t) = ERNIE_SELECT_ISA(void (*)(const T*, int64_t, float*, int64_t),
                                                 pack_value);
  void (*softmax)(float*, int64_t, int64_t, float, float*, float*, float*,
                  int64_t) = ERNIE_SELECT_ISA(void (*)(float*, int64_t, int64_t, float, float*,
                                                       float*, float*, int64_t),
                                              softmax_row);
  void (*merge)(float*, float*, float*, float, float, const float*, int64_t) = ERNIE_SELECT_ISA(
      void (*)(float*, float*, float*, float, float, const float*, int64_t), merge_row);
  void (*divide)(const float*, float, T*,
                 int64_t) = ERNIE_SELECT_ISA(void (*)(const float*, float, T*, int64_t),
                                             divide_row);
};

template <class T, class Q>
class Attention {
 public:
  explicit Attention(const AttentionArgs& a)
      : a_(a),
        num_seqs_(a.seq_lens.size(0)),
        s_{a.query.size(1) / a.k_cache.size(1), a.query.size(2),
           round_up(a.query.size(2), kPanelRows), a.k_cache.size(2)} {
    check_metadata();
    make_tiles();
  }

  void run() {
    // Splits run side by side only where there are too few tiles to keep the threads busy; the
    // merge order is the same either way.
    const bool side_by_side =
        longest_ > kAttentionSplit && static_cast<int64_t>(tiles_.size()) < 4 * num_threads();
    side_by_side ? run_splits() : run_tiles();
  }

 private:
  int64_t seq_len(int64_t s) const { return a_.seq_lens.ptr<int32_t>()[s]; }
  int64_t first_row(int64_t s) const { return a_.cu_seqlens_q.ptr<int32_t>()[s]; }
  int64_t query_len(int64_t s) const { return first_row(s + 1) - first_row(s); }
  int64_t rows_of(const Tile& t) const { return t.tokens * s_.group; }

  // Keys that token `i` of sequence `s` sees.
  int64_t limit(int64_t s, int64_t i) const {
    return a_.causal ? seq_len(s) - query_len(s) + i + 1 : seq_len(s);
  }
  int64_t tile_limit(const Tile& t) const { return limit(t.seq, t.first + t.tokens - 1); }
  int64_t splits_of(const Tile& t) const { return ceil_div(tile_limit(t), kAttentionSplit); }

  [[noreturn]] static void fail(const char* argument, const std::string& expected, int64_t got,
                                int64_t seq) {
    throw ArgumentError(std::string("attention: ") + argument + ": expected " + expected +
                        ", got " + std::to_string(got) + " for sequence " + std::to_string(seq));
  }

  void check_metadata() {
    if (first_row(0) != 0) fail("cu_seqlens_q", "0 at the start", first_row(0), 0);
    for (int64_t s = 0; s < num_seqs_; ++s) {
      if (query_len(s) < 0) fail("cu_seqlens_q", "non-decreasing values", query_len(s), s);
      if (query_len(s) > a_.max_seqlen_q)
        fail("cu_seqlens_q", "at most max_seqlen_q=" + std::to_string(a_.max_seqlen_q) + " rows",
             query_len(s), s);
      if (seq_len(s) < query_len(s) || seq_len(s) > a_.max_seq_len)
        fail("seq_lens",
             std::to_string(query_len(s)) +
                 " (its query rows) to max_seq_len=" + std::to_string(a_.max_seq_len),
             seq_len(s), s);
      for (int64_t b = 0; b < ceil_div(seq_len(s), s_.block_size); ++b)
        if (block_id(s, b) < 0 || block_id(s, b) >= a_.k_cache.size(0))
          fail("block_table", "ids from 0 to " + std::to_string(a_.k_cache.size(0) - 1),
               block_id(s, b), s);
    }
    if (first_row(num_seqs_) != a_.query.size(0))
      fail("cu_seqlens_q", "num_tokens=" + std::to_string(a_.query.size(0)) + " at the end",
           first_row(num_seqs_), num_seqs_ - 1);
  }

  int64_t block_id(int64_t s, int64_t b) const {
    return a_.block_table.ptr<int32_t>()[s * a_.block_table.size(1) + b];
  }

  void make_tiles() {
    const int64_t tokens = std::max<int64_t>(1, kTileRows / s_.group);
    for (int64_t s = 0; s < num_seqs_; ++s)
      for (int64_t i = 0; i < query_len(s); i += tokens)
        for (int64_t h = 0; h < a_.k_cache.size(1); ++h)
          tiles_.push_back({s, h, i, std::min(tokens, query_len(s) - i)});
    // The longest first: what is left at the end is short.
    std::stable_sort(tiles_.begin(), tiles_.end(), [this](const Tile& x, const Tile& y) {
      return tile_limit(x) > tile_limit(y);
    });
    longest_ = tiles_.empty() ? 0 : tile_limit(tiles_.front());
  }

  // One thread per tile, split after split.
  void run_tiles() {
    parallel_for(static_cast<int64_t>(tiles_.size()), 1, [&](int64_t i, int64_t) {
      const Tile& tile = tiles_[i];
      const int64_t rows = rows_of(tile);
      auto* memory = static_cast<float*>(
          scratch(ScratchSlot::kPartial, 2 * s_.partial_floats(rows) * sizeof(float)));
      const Partial total = s_.partial_at(memory, rows);
      const Partial part = s_.partial_at(memory + s_.partial_floats(rows), rows);
      total.reset(rows, s_.width);
      compute_split(tile, 0, total);
      for (int64_t split = 1; split < splits_of(tile); ++split) {
        compute_split(tile, split, part);
        merge(tile, total, part);
      }
      write(tile, total);
    });
  }

  // One thread per tile and split, then one per tile to merge them.
  void run_splits() {
    std::vector<int64_t> first_split(tiles_.size() + 1, 0), offset(tiles_.size() + 1, 0);
    for (size_t i = 0; i < tiles_.size(); ++i) {
      const int64_t splits = std::max<int64_t>(1, splits_of(tiles_[i]));
      first_split[i + 1] = first_split[i] + splits;
      offset[i + 1] = offset[i] + splits * s_.partial_floats(rows_of(tiles_[i]));
    }
    auto* memory =
        static_cast<float*>(scratch(ScratchSlot::kSplits, offset.back() * sizeof(float)));
    const auto partial = [&](int64_t i, int64_t split) {
      const int64_t rows = rows_of(tiles_[i]);
      return s_.partial_at(memory + offset[i] + split * s_.partial_floats(rows), rows);
    };
    parallel_for(first_split.back(), 1, [&](int64_t item, int64_t) {
      const int64_t i =
          std::upper_bound(first_split.begin(), first_split.end(), item) - first_split.begin() - 1;
      compute_split(tiles_[i], item - first_split[i], partial(i, item - first_split[i]));
    });
    parallel_for(static_cast<int64_t>(tiles_.size()), 1, [&](int64_t i, int64_t) {
      for (int64_t split = 1; split < first_split[i + 1] - first_split[i]; ++split)
        merge(tiles_[i], partial(i, 0), partial(i, split));
      write(tiles_[i], partial(i, 0));
    });
  }

  // The tile's rows against keys [split * kAttentionSplit, ...).
  void compute_split(const Tile& tile, int64_t split, const Partial& p) const {
    const int64_t rows = rows_of(tile), d = s_.head_dim;
    p.reset(rows, s_.width);
    const int64_t begin = split * kAttentionSplit;
    const int64_t end = std::min(begin + kAttentionSplit, tile_limit(tile));
    if (begin >= end) return;

    auto* queries = static_cast<Q*>(scratch(ScratchSlot::kRows, rows * d * sizeof(Q)));
    load_queries(tile, queries);
    auto* scores =
        static_cast<float*>(scratch(ScratchSlot::kAccumulator, rows * kTileKeys * sizeof(float)));
    auto* values = static_cast<float*>(
        scratch(ScratchSlot::kPanel, kTileKeys * (d + s_.width) * sizeof(float)));
    Q* keys = reinterpret_cast<Q*>(values + kTileKeys * s_.width);

    for (int64_t key = begin; key < end; key += kTileKeys) {
      const int64_t count = std::min(kTileKeys, end - key);
      load_keys_and_values(tile, key, count, keys, values);
      // Rows before `hidden` see none of these keys; what they hold stays untouched.
      const int64_t hidden = hidden_rows(tile, key);
      const int64_t seen = rows - hidden;
      leaves_.score_gemm({.x = queries + hidden * d,
                          .x_stride = d,
                          .rows = seen,
                          .w = keys,
                          .w_stride = d * kPanelRows,
                          .panels = ceil_div(count, kPanelRows),
                          .k = d,
                          .acc = scores,
                          .acc_stride = kTileKeys,
                          .accumulate = false});
      for (int64_t r = 0; r < seen; ++r) {
        const int64_t row = hidden + r;
        leaves_.softmax(scores + r * kTileKeys, visible_keys(tile, key, count, row), count,
                        a_.scale, p.maximum + row, p.sum + row, p.acc + row * s_.width, s_.width);
      }
      add_values(tile, key, count, hidden, scores, values, p);
    }
  }

  // Rows from `hidden` on. Tokens that see some of the keys only go one by one, with those keys: a
  // zero for what they must not see would make NaN of an infinity there.
  void add_values(const Tile& tile, int64_t key, int64_t count, int64_t hidden, const float* scores,
                  const float* values, const Partial& p) const {
    const int64_t rows = rows_of(tile);
    for (int64_t row = hidden; row < rows;) {
      const int64_t visible = visible_keys(tile, key, count, row);
      const int64_t taken = visible < count ? s_.group : rows - row;
      leaves_.gemm({.x = scores + (row - hidden) * kTileKeys,
                    .x_stride = kTileKeys,
                    .rows = taken,
                    .w = values,
                    .w_stride = kTileKeys * kPanelRows,
                    .panels = s_.width / kPanelRows,
                    .k = visible,
                    .acc = p.acc + row * s_.width,
                    .acc_stride = s_.width,
                    .accumulate = true});
      row += taken;
    }
  }

  // How many of `count` keys from `key` on the row sees.
  int64_t visible_keys(const Tile& tile, int64_t key, int64_t count, int64_t row) const {
    return std::min(count, limit(tile.seq, tile.first + row / s_.group) - key);
  }

  int64_t hidden_rows(const Tile& tile, int64_t key) const {
    if (!a_.causal) return 0;
    const int64_t tokens =
        std::clamp<int64_t>(key - limit(tile.seq, tile.first) + 1, 0, tile.tokens);
    return tokens * s_.group;
  }

  void load_queries(const Tile& tile, Q* out) const {
    for (int64_t i = 0; i < tile.tokens; ++i)
      for (int64_t g = 0; g < s_.group; ++g, out += s_.head_dim)
        if constexpr (std::is_same_v<T, Q>)
          std::copy_n(row_of(a_.query, tile, i, g), s_.head_dim, out);
        else
          leaves_.widen(row_of(a_.query, tile, i, g), out, s_.head_dim, s_.head_dim);
  }

  void load_keys_and_values(const Tile& tile, int64_t key, int64_t count, Q* keys,
                            float* values) const {
    const int64_t page = s_.block_size * s_.head_dim;
    for (int64_t j = 0; j < count; j += kPanelRows) {
      const int64_t block = block_id(tile.seq, (key + j) / s_.block_size);
      const int64_t at = (block * a_.k_cache.size(1) + tile.kv_head) * page +
                         (key + j) % s_.block_size * s_.head_dim;
      const int64_t rows = std::min(kPanelRows, count - j);
      leaves_.pack_keys(a_.k_cache.ptr<T>() + at, rows, s_.head_dim, keys + j * s_.head_dim);
      for (int64_t r = 0; r < rows; ++r)
        leaves_.pack_value(a_.v_cache.ptr<T>() + at + r * s_.head_dim, s_.head_dim,
                           values + (j + r) * kPanelRows, kTileKeys * kPanelRows);
    }
  }

  void merge(const Tile& tile, const Partial& total, const Partial& part) const {
    for (int64_t r = 0; r < rows_of(tile); ++r)
      if (part.sum[r] != 0.f)  // a row that saw none of the split's keys has nothing to add
        leaves_.merge(total.maximum + r, total.sum + r, total.acc + r * s_.width, part.maximum[r],
                      part.sum[r], part.acc + r * s_.width, s_.width);
  }

  void write(const Tile& tile, const Partial& total) const {
    for (int64_t r = 0; r < rows_of(tile); ++r) {
      const bool empty = limit(tile.seq, tile.first + r / s_.group) <= 0;
      leaves_.divide(total.acc + r * s_.width, empty ? 1.f : total.sum[r],
                     row_of(a_.out, tile, r / s_.group, r % s_.group), s_.head_dim);
    }
  }

  T* row_of(const TensorView& t, const Tile& tile, int64_t i, int64_t g) const {
    return t.ptr<T>() + (first_row(tile.seq) + tile.first + i) * t.step(0) +
           (tile.kv_head * s_.group + g) * t.step(1);
  }

  const AttentionArgs& a_;
  const int64_t num_seqs_;
  const Sizes s_;
  const Leaves<T, Q> leaves_;
  std::vector<Tile> tiles_;
  int64_t longest_ = 0;
};

}  // namespace

void attention(const AttentionArgs& a, const Stream&) {
  if (a.query.dtype == DType::kF32)
    Attention<float, float>(a).run();
  else if (prefers_bf16_dot())
    Attention<bf16, bf16>(a).run();
  else
    Attention<bf16, float>(a).run();
}

}  // namespace ernie::cpu
