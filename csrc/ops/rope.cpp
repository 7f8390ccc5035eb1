#include "ops/rope.h"

#include <cmath>

#include "core/check.h"
#include "core/dispatch.h"

namespace ernie {
namespace {

void check_even(const Check& check, const char* name, const TensorView& t) {
  if (t.size(-1) % 2 != 0) check.fail(name, "an even head_dim", "shape " + shape_string(t));
}

// Query or key, rotated in place.
void check_heads(const Check& check, const char* name, const TensorView& x) {
  check.rank(name, x, 3);
  check.inner_contiguous(name, x);
  check.writable(name, x);
}

}  // namespace

void rope_table(const RopeTableArgs& a, const Stream& stream) {
  const Check check("rope_table");
  check.rank("positions", a.positions, 1);
  check.dtype("positions", a.positions, {DType::kI64});
  check.contiguous("positions", a.positions);
  if (!(a.theta > 0) || std::isinf(a.theta))
    check.fail("theta", "a finite value > 0", std::to_string(a.theta));
  check.rank("out", a.out, 2);
  check.shape("out", a.out, {{"num_tokens", a.positions.size(0)}, {"head_dim", a.out.size(1)}});
  check.dtype("out", a.out, {DType::kF32});
  check_even(check, "out", a.out);
  check.contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "positions", a.positions);
  check.device(stream.device, {{"out", &a.out}, {"positions", &a.positions}});
  if (a.out.numel() == 0) return;
  dispatch("rope_table", {&cpu::rope_table, ERNIE_CUDA_FN(cuda::rope_table)}, a, stream);
}

void rope(const RopeArgs& a, const Stream& stream) {
  const Check check("rope");
  check_heads(check, "query", a.query);
  const int64_t num_tokens = a.query.size(0), head_dim = a.query.size(2);
  check.dtype("query", a.query, {DType::kF32, DType::kBF16});
  check_even(check, "query", a.query);
  check_heads(check, "key", a.key);
  check.shape(
      "key", a.key,
      {{"num_tokens", num_tokens}, {"num_kv_heads", a.key.size(1)}, {"head_dim", head_dim}});
  check.dtype("key", a.key, {a.query.dtype});
  check.disjoint("key", a.key, "query", a.query);
  check.shape("table", a.table, {{"num_tokens", num_tokens}, {"head_dim", head_dim}});
  check.dtype("table", a.table, {DType::kF32});
  check.contiguous("table", a.table);
  check.disjoint("query", a.query, "table", a.table);
  check.disjoint("key", a.key, "table", a.table);
  check.device(stream.device, {{"query", &a.query}, {"key", &a.key}, {"table", &a.table}});
  if (a.query.numel() == 0 && a.key.numel() == 0) return;
  dispatch("rope", {&cpu::rope, ERNIE_CUDA_FN(cuda::rope)}, a, stream);
}

}  // namespace ernie
