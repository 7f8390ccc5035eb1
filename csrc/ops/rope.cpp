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

// Checks a table and fills it.
void make_table(const RopeAnglesArgs& a, const Stream& stream) {
  const Check check(a.op);
  check.dtype("positions", a.positions, {DType::kI64});
  check.contiguous("positions", a.positions);
  if (!(a.theta > 0) || std::isinf(a.theta))
    check.fail("theta", "a finite value > 0", std::to_string(a.theta));
  check.rank("out", a.out, 2);
  check.shape("out", a.out, {{"num_tokens", a.positions.size(-1)}, {"head_dim", a.out.size(1)}});
  check.dtype("out", a.out, {DType::kF32});
  check_even(check, "out", a.out);
  check.contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "positions", a.positions);
  check.device(stream.device, {{"out", &a.out}, {"positions", &a.positions}});
  if (a.out.numel() == 0) return;
  dispatch(a.op, {&cpu::rope_angles, ERNIE_CUDA_FN(cuda::rope_angles)}, a, stream);
}

// Positions of several axes, and the head_dim of their table.
int64_t check_axes(const Check& check, const TensorView& positions, Dim axes,
                   const TensorView& out) {
  check.rank("positions", positions, 2);
  check.shape("positions", positions, {axes, {"num_tokens", positions.size(1)}});
  check.rank("out", out, 2);
  return out.size(1);
}

// What rope and rope_2d ask of their arguments.
void check_rotation(const Check& check, const RopeArgs& a, const Stream& stream) {
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
}

}  // namespace

void rope_table(const RopeTableArgs& a, const Stream& stream) {
  const Check check("rope_table");
  check.rank("positions", a.positions, 1);
  check.rank("out", a.out, 2);
  make_table({.op = "rope_table",
              .out = a.out,
              .positions = a.positions,
              .theta = a.theta,
              .scheme = {RopeAxes::kText, a.out.size(1) / 2, 0}},
             stream);
}

void mrope_table(const MropeTableArgs& a, const Stream& stream) {
  const Check check("mrope_table");
  const int64_t pairs = check_axes(check, a.positions, {"3", 3}, a.out) / 2;
  if (a.freq_allocation < 0 || a.freq_allocation > pairs)
    check.fail("freq_allocation", "a value from 0 to head_dim / 2 = " + std::to_string(pairs),
               std::to_string(a.freq_allocation));
  make_table({.op = "mrope_table",
              .out = a.out,
              .positions = a.positions,
              .theta = a.theta,
              .scheme = {RopeAxes::kMedia, pairs, a.freq_allocation}},
             stream);
}

void rope_2d_table(const Rope2dTableArgs& a, const Stream& stream) {
  const Check check("rope_2d_table");
  const int64_t head_dim = check_axes(check, a.positions, {"2", 2}, a.out);
  if (head_dim % 4 != 0)
    check.fail("out", "a head_dim that is a multiple of 4", "shape " + shape_string(a.out));
  make_table({.op = "rope_2d_table",
              .out = a.out,
              .positions = a.positions,
              .theta = a.theta,
              .scheme = {RopeAxes::kGrid, head_dim / 2, 0}},
             stream);
}

void rope(const RopeArgs& a, const Stream& stream) {
  check_rotation(Check("rope"), a, stream);
  if (a.query.numel() == 0 && a.key.numel() == 0) return;
  dispatch("rope", {&cpu::rope, ERNIE_CUDA_FN(cuda::rope)}, a, stream);
}

void rope_2d(const RopeArgs& a, const Stream& stream) {
  check_rotation(Check("rope_2d"), a, stream);
  if (a.query.numel() == 0 && a.key.numel() == 0) return;
  dispatch("rope_2d", {&cpu::rope_2d, ERNIE_CUDA_FN(cuda::rope_2d)}, a, stream);
}

}  // namespace ernie
