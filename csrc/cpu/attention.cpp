// Where keys and values lie: in the pages of a cache, or row after row. What is computed with them
// is attention_tiles.h.
#include "ops/attention.h"

#include <string>

#include "core/checked.h"
#include "core/isa.h"
#include "cpu/attention_tiles.h"

namespace ernie::cpu {
namespace {

template <class T>
class PagedKeys {
 public:
  explicit PagedKeys(const AttentionArgs& a) : a_(a), block_size_(a.k_cache.size(2)) {}

  int64_t num_kv_heads() const { return a_.k_cache.size(1); }
  int64_t count(int64_t s) const { return a_.seq_lens.ptr<int32_t>()[s]; }

  AttentionRows<T> keys(int64_t s, int64_t kv_head, int64_t key) const {
    return {a_.k_cache.ptr<T>() + offset(s, kv_head, key), a_.k_cache.size(3)};
  }
  AttentionRows<T> values(int64_t s, int64_t kv_head, int64_t key) const {
    return {a_.v_cache.ptr<T>() + offset(s, kv_head, key), a_.v_cache.size(3)};
  }

  void check(const AttentionQueries& queries) const {
    for (int64_t s = 0; s < queries.num_seqs(); ++s) {
      if (count(s) < queries.count(s) || count(s) > a_.max_seq_len)
        queries.fail("seq_lens",
                     std::to_string(queries.count(s)) +
                         " (its query rows) to max_seq_len=" + std::to_string(a_.max_seq_len),
                     count(s), s);
      for (int64_t b = 0; b < ceil_div(count(s), block_size_); ++b)
        if (block_id(s, b) < 0 || block_id(s, b) >= a_.k_cache.size(0))
          queries.fail("block_table", "ids from 0 to " + std::to_string(a_.k_cache.size(0) - 1),
                       block_id(s, b), s);
    }
  }

 private:
  int64_t block_id(int64_t s, int64_t b) const {
    return a_.block_table.ptr<int32_t>()[s * a_.block_table.size(1) + b];
  }

  int64_t offset(int64_t s, int64_t kv_head, int64_t key) const {
    const int64_t block = block_id(s, key / block_size_);
    return ((block * num_kv_heads() + kv_head) * block_size_ + key % block_size_) *
           a_.k_cache.size(3);
  }

  const AttentionArgs& a_;
  const int64_t block_size_;
};

template <class T>
class SegmentKeys {
 public:
  SegmentKeys(const VarlenAttentionArgs& a, const AttentionQueries& queries)
      : a_(a), queries_(queries) {}

  int64_t num_kv_heads() const { return a_.key.size(1); }
  int64_t count(int64_t s) const { return queries_.count(s); }

  AttentionRows<T> keys(int64_t s, int64_t kv_head, int64_t key) const {
    return rows(a_.key, s, kv_head, key);
  }
  AttentionRows<T> values(int64_t s, int64_t kv_head, int64_t key) const {
    return rows(a_.value, s, kv_head, key);
  }

 private:
  AttentionRows<T> rows(const TensorView& t, int64_t s, int64_t kv_head, int64_t key) const {
    const int64_t token = queries_.first_row(s) + key;
    return {t.ptr<T>() + token * t.step(0) + kv_head * t.step(1), t.step(0)};
  }

  const VarlenAttentionArgs& a_;
  const AttentionQueries& queries_;
};

template <class T, class Q>
void run(const AttentionArgs& a, const AttentionQueries& queries) {
  const PagedKeys<T> keys(a);
  keys.check(queries);
  if (a.out.numel() == 0) return;
  TiledAttention<T, Q, PagedKeys<T>>(queries, keys).run();
}

template <class T, class Q>
void run(const VarlenAttentionArgs& a, const AttentionQueries& queries) {
  if (a.out.numel() == 0) return;
  TiledAttention<T, Q, SegmentKeys<T>>(queries, SegmentKeys<T>(a, queries)).run();
}

template <class Args>
void run_typed(const Args& a, const AttentionQueries& queries) {
  if (a.query.dtype == DType::kF32)
    run<float, float>(a, queries);
  else if (prefers_bf16_dot())
    run<bf16, bf16>(a, queries);
  else
    run<bf16, float>(a, queries);
}

}  // namespace

void attention(const AttentionArgs& a, const Stream&) {
  const AttentionQueries queries{.op = "attention",
                                 .out = a.out,
                                 .query = a.query,
                                 .cu_seqlens = a.cu_seqlens_q,
                                 .max_seqlen = a.max_seqlen_q,
                                 .scale = a.scale,
                                 .causal = a.causal};
  queries.check("cu_seqlens_q", "max_seqlen_q");
  run_typed(a, queries);
}

void varlen_attention(const VarlenAttentionArgs& a, const Stream&) {
  const AttentionQueries queries{.op = "varlen_attention",
                                 .out = a.out,
                                 .query = a.query,
                                 .cu_seqlens = a.cu_seqlens,
                                 .max_seqlen = a.max_seqlen,
                                 .scale = a.scale,
                                 .causal = false};
  queries.check("cu_seqlens", "max_seqlen");
  run_typed(a, queries);
}

}  // namespace ernie::cpu
