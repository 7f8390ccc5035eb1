// Attention by tiles, for attention.cpp, which says where keys and values lie. One work item is a
// tile of query rows (tokens x the query heads of one kv head), against the keys of one sequence.
// Keys and values of 64 tokens at a time are turned into panels in cache, read once for all rows of
// the tile, and multiplied by the leaves of gemm.isa.h: prefill and decode run the same code, which
// is why they give the same bits.
#pragma once

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
#include "ops/attention.h"

namespace ernie::cpu {

// Query rows of a tile. Many share the work of packing a key tile; few make tiles enough for all
// threads.
constexpr int64_t kTileRows = 192, kFewestTileRows = 48;
static_assert(kTileKeys % 64 == 0);  // a multiple of every block size, so a tile is whole pages
static_assert(kAttentionSplit % kTileKeys == 0);

// What is asked: rows of queries, sequence after sequence.
struct AttentionQueries {
  const char* op;
  const TensorView& out;
  const TensorView& query;
  const TensorView& cu_seqlens;
  int64_t max_seqlen;
  float scale;
  bool causal;

  int64_t num_seqs() const { return cu_seqlens.size(0) - 1; }
  int64_t first_row(int64_t s) const { return cu_seqlens.ptr<int32_t>()[s]; }
  int64_t count(int64_t s) const { return first_row(s + 1) - first_row(s); }

  [[noreturn]] void fail(const char* argument, const std::string& expected, int64_t got,
                         int64_t seq) const {
    throw ArgumentError(std::string(op) + ": " + argument + ": expected " + expected + ", got " +
                        std::to_string(got) + " for sequence " + std::to_string(seq));
  }

  // `argument` is what the op calls cu_seqlens, `limit` what it calls max_seqlen.
  void check(const char* argument, const char* limit) const {
    if (first_row(0) != 0) fail(argument, "0 at the start", first_row(0), 0);
    for (int64_t s = 0; s < num_seqs(); ++s) {
      if (count(s) < 0) fail(argument, "non-decreasing values", count(s), s);
      if (count(s) > max_seqlen)
        fail(argument, std::string("at most ") + limit + "=" + std::to_string(max_seqlen) + " rows",
             count(s), s);
    }
    if (first_row(num_seqs()) != query.size(0))
      throw ArgumentError(std::string(op) + ": " + argument +
                          ": expected num_tokens=" + std::to_string(query.size(0)) +
                          " at the end, got " + std::to_string(first_row(num_seqs())));
  }
};

// Keys, or values, of one kv head one after the other.
template <class T>
struct AttentionRows {
  const T* first;
  int64_t stride;
};

// A tile of query rows: tokens [first, first + tokens) of sequence `seq`, heads of `kv_head`.
struct AttentionTile {
  int64_t seq, kv_head, first, tokens;
};

// Running result of a tile's rows: a fresh one per split.
struct AttentionPartial {
  float* acc;  // [rows, padded head_dim]
  float* maximum;
  float* sum;

  void reset(int64_t rows, int64_t width) const {
    std::fill_n(acc, rows * width, 0.f);
    std::fill_n(maximum, rows, -INFINITY);
    std::fill_n(sum, rows, 0.f);
  }
};

struct AttentionSizes {
  int64_t group;  // query heads per kv head
  int64_t head_dim;
  int64_t width;  // head_dim padded to whole panels

  int64_t partial_floats(int64_t rows) const { return rows * (width + 2); }
  AttentionPartial partial_at(float* p, int64_t rows) const {
    return {p, p + rows * width, p + rows * width + rows};
  }
};

// T is the dtype of queries, keys and values; Q what they and the probabilities are multiplied in:
// float, or bfloat16 where its dot product is the faster instruction.
template <class T, class Q>
struct AttentionLeaves {
  static constexpr bool kPairs = std::is_same_v<Q, bf16>;
  using GemmFn = void (*)(const GemmBlock&);
  GemmFn gemm =
      kPairs ? ERNIE_SELECT_ISA(GemmFn, gemm_bf16_bf16) : ERNIE_SELECT_ISA(GemmFn, gemm_f32_f32);
  using WidenFn = void (*)(const T*, float*, int64_t, int64_t);
  WidenFn widen = ERNIE_SELECT_ISA(WidenFn, widen_row);
  using PackKeysFn = void (*)(const T*, int64_t, int64_t, int64_t, Q*);
  PackKeysFn pack_keys = ERNIE_SELECT_ISA(PackKeysFn, pack_keys);
  using PackValuesFn = bool (*)(const T*, int64_t, int64_t, int64_t, Q*, int64_t);
  PackValuesFn pack_values = ERNIE_SELECT_ISA(PackValuesFn, pack_values);
  using SoftmaxFn = void (*)(const SoftmaxTile&);
  SoftmaxFn softmax =
      kPairs ? ERNIE_SELECT_ISA(SoftmaxFn, softmax_bf16) : ERNIE_SELECT_ISA(SoftmaxFn, softmax_f32);
  using MergeFn = void (*)(float*, float*, float*, float, float, const float*, int64_t);
  MergeFn merge = ERNIE_SELECT_ISA(MergeFn, merge_row);
  using DivideFn = void (*)(const float*, float, T*, int64_t);
  DivideFn divide = ERNIE_SELECT_ISA(DivideFn, divide_row);
};

// Keys says where keys and values lie:
//   int64_t num_kv_heads() const;
//   int64_t count(int64_t seq) const;  // keys of a sequence
//   // Rows from `key` on, as many as its panel of 16 has; `key` is a multiple of 16.
//   AttentionRows<T> keys(int64_t seq, int64_t kv_head, int64_t key) const;
//   AttentionRows<T> values(int64_t seq, int64_t kv_head, int64_t key) const;
template <class T, class Q, class Keys>
class TiledAttention {
 public:
  using Tile = AttentionTile;
  using Partial = AttentionPartial;

  TiledAttention(const AttentionQueries& queries, const Keys& keys)
      : q_(queries),
        keys_(keys),
        s_{queries.query.size(1) / keys.num_kv_heads(), queries.query.size(2),
           round_up(queries.query.size(2), kPanelRows)} {
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
  int64_t rows_of(const Tile& t) const { return t.tokens * s_.group; }

  // Keys that token `i` of sequence `s` sees.
  int64_t limit(int64_t s, int64_t i) const {
    return q_.causal ? keys_.count(s) - q_.count(s) + i + 1 : keys_.count(s);
  }
  int64_t tile_limit(const Tile& t) const { return limit(t.seq, t.first + t.tokens - 1); }
  int64_t splits_of(const Tile& t) const { return ceil_div(tile_limit(t), kAttentionSplit); }

  void make_tiles() {
    const int64_t kv_heads = keys_.num_kv_heads();
    const int64_t all_rows = q_.query.size(0) * s_.group * kv_heads;
    int64_t rows = kTileRows;
    while (rows > kFewestTileRows && all_rows / rows < 4 * num_threads()) rows /= 2;
    const int64_t tokens = std::max<int64_t>(1, rows / s_.group);
    // A head's tiles one after the other find its keys and values in L2.
    for (int64_t s = 0; s < q_.num_seqs(); ++s)
      for (int64_t h = 0; h < kv_heads; ++h)
        for (int64_t i = 0; i < q_.count(s); i += tokens)
          tiles_.push_back({s, h, i, std::min(tokens, q_.count(s) - i)});
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
    auto* memory = static_cast<float*>(
        scratch(ScratchSlot::kAccumulator, rows * (kTileKeys + 3) * sizeof(float)));
    float* scores = memory + 3 * rows;
    auto* visible = reinterpret_cast<int32_t*>(memory + 2 * rows);
    auto* keys =
        static_cast<Q*>(scratch(ScratchSlot::kPanel, kTileKeys * (d + s_.width) * sizeof(Q)));
    Q* values = keys + kTileKeys * d;

    for (int64_t key = begin; key < end; key += kTileKeys) {
      const int64_t count = std::min(kTileKeys, end - key);
      pack_keys(tile, key, count, keys);
      const bool finite = pack_values(tile, key, count, values);
      // Rows before `hidden` see none of these keys; what they hold stays untouched.
      const int64_t hidden = hidden_rows(tile, key);
      const int64_t seen = rows - hidden;
      fill_visible(tile, key, count, hidden, visible);
      leaves_.gemm({.x = queries + hidden * d,
                    .x_stride = d,
                    .rows = seen,
                    .w = keys,
                    .w_stride = d * kPanelRows,
                    .panels = ceil_div(count, kPanelRows),
                    .k = d,
                    .acc = scores,
                    .acc_stride = kTileKeys,
                    .accumulate = false});
      leaves_.softmax({.scores = scores,
                       .rows = seen,
                       .visible = visible,
                       .scale = q_.scale,
                       .maximum = p.maximum + hidden,
                       .sum = p.sum + hidden,
                       .acc = p.acc + hidden * s_.width,
                       .width = s_.width,
                       .highest = memory,
                       .shrink = memory + rows});
      if (finite || !q_.causal)
        add_values(scores, seen, values, count, p.acc + hidden * s_.width);
      else
        add_visible_values(tile, key, scores, seen, visible, values, p.acc + hidden * s_.width);
    }
  }

  // acc += p v for `rows` rows of probabilities, which lie where the scores were.
  void add_values(const float* scores, int64_t rows, const Q* values, int64_t count,
                  float* acc) const {
    leaves_.gemm({.x = scores,
                  .x_stride = kTileKeys * static_cast<int64_t>(sizeof(float) / sizeof(Q)),
                  .rows = rows,
                  .w = values,
                  .w_stride = kTileKeys * kPanelRows,
                  .panels = s_.width / kPanelRows,
                  .k = AttentionLeaves<T, Q>::kPairs ? round_up(count, 2) : count,
                  .acc = acc,
                  .acc_stride = s_.width,
                  .accumulate = true});
  }

  // The same where a value is infinite or NaN, and some rows do not see it: token by token with the
  // keys that it sees, for a probability of zero would make NaN of the others.
  void add_visible_values(const Tile& tile, int64_t key, const float* scores, int64_t rows,
                          const int32_t* visible, Q* values, float* acc) const {
    for (int64_t r = 0; r < rows; r += s_.group) {
      pack_values(tile, key, visible[r], values);
      add_values(scores + r * kTileKeys, s_.group, values, visible[r], acc + r * s_.width);
    }
  }

  // How many of `count` keys from `key` on each row from `hidden` on sees.
  void fill_visible(const Tile& tile, int64_t key, int64_t count, int64_t hidden,
                    int32_t* visible) const {
    for (int64_t i = tile.first + hidden / s_.group; i < tile.first + tile.tokens; ++i) {
      const int64_t seen = std::min(count, limit(tile.seq, i) - key);
      visible = std::fill_n(visible, s_.group, static_cast<int32_t>(seen));
    }
  }

  int64_t hidden_rows(const Tile& tile, int64_t key) const {
    if (!q_.causal) return 0;
    const int64_t tokens =
        std::clamp<int64_t>(key - limit(tile.seq, tile.first) + 1, 0, tile.tokens);
    return tokens * s_.group;
  }

  void load_queries(const Tile& tile, Q* out) const {
    for (int64_t i = 0; i < tile.tokens; ++i)
      for (int64_t g = 0; g < s_.group; ++g, out += s_.head_dim)
        if constexpr (std::is_same_v<T, Q>)
          std::copy_n(row_of(q_.query, tile, i, g), s_.head_dim, out);
        else
          leaves_.widen(row_of(q_.query, tile, i, g), out, s_.head_dim, s_.head_dim);
  }

  void pack_keys(const Tile& tile, int64_t key, int64_t count, Q* out) const {
    for (int64_t j = 0; j < count; j += kPanelRows) {
      const AttentionRows<T> rows = keys_.keys(tile.seq, tile.kv_head, key + j);
      leaves_.pack_keys(rows.first, rows.stride, std::min(kPanelRows, count - j), s_.head_dim,
                        out + j * s_.head_dim);
    }
  }

  // Whether all values are finite.
  bool pack_values(const Tile& tile, int64_t key, int64_t count, Q* out) const {
    bool finite = true;
    for (int64_t j = 0; j < count; j += kPanelRows) {
      const AttentionRows<T> rows = keys_.values(tile.seq, tile.kv_head, key + j);
      finite &= leaves_.pack_values(rows.first, rows.stride, std::min(kPanelRows, count - j),
                                    s_.head_dim, out + j * kPanelRows, kTileKeys * kPanelRows);
    }
    return finite;
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
                     row_of(q_.out, tile, r / s_.group, r % s_.group), s_.head_dim);
    }
  }

  T* row_of(const TensorView& t, const Tile& tile, int64_t i, int64_t g) const {
    return t.ptr<T>() + (q_.first_row(tile.seq) + tile.first + i) * t.step(0) +
           (tile.kv_head * s_.group + g) * t.step(1);
  }

  const AttentionQueries q_;
  const Keys keys_;
  const AttentionSizes s_;
  const AttentionLeaves<T, Q> leaves_;
  std::vector<Tile> tiles_;
  int64_t longest_ = 0;
};

}  // namespace ernie::cpu
