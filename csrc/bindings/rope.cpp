#include "ops/rope.h"

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"

namespace py = pybind11;

namespace ernie::bindings {

namespace {

// Room for a table of `positions`, [num_tokens] or [axes, num_tokens].
Tensor table_of(const char* op, const TensorView& positions, int rank,
                const Scalar<int64_t>& head_dim_, int64_t multiple) {
  const Check check(op);
  const int64_t head_dim = head_dim_.get(op, "head_dim");
  check.rank("positions", positions, rank);
  if (head_dim < multiple || head_dim % multiple != 0)
    check.fail("head_dim",
               multiple == 2 ? "an even value >= 2"
                             : "a multiple of " + std::to_string(multiple) + " that is > 0",
               std::to_string(head_dim));
  return empty({positions.size(-1), head_dim}, DType::kF32, stream_of({&positions}));
}

// That `out` is of the head_dim that was asked for.
void check_table(const char* op, const TensorView& out, const TensorView& positions, int rank,
                 const Scalar<int64_t>& head_dim) {
  const Check check(op);
  check.rank("positions", positions, rank);
  check.shape("out", out,
              {{"num_tokens", positions.size(-1)}, {"head_dim", head_dim.get(op, "head_dim")}});
}

}  // namespace

void bind_rope(py::module_& m) {
  m.def(
      "rope_table_out",
      [](TensorView positions, Scalar<int64_t> head_dim) {
        return table_of("rope_table", positions, 1, head_dim, 2);
      },
      py::arg("positions"), py::arg("head_dim"));
  m.def(
      "rope_table",
      [](TensorView out, TensorView positions, Scalar<int64_t> head_dim, Scalar<float> theta) {
        check_table("rope_table", out, positions, 1, head_dim);
        run(rope_table,
            {.out = out, .positions = positions, .theta = theta.get("rope_table", "theta")},
            {&out, &positions});
      },
      py::arg("out"), py::arg("positions"), py::arg("head_dim"), py::arg("theta"));
  m.def(
      "mrope_table_out",
      [](TensorView positions, Scalar<int64_t> head_dim) {
        return table_of("mrope_table", positions, 2, head_dim, 2);
      },
      py::arg("positions"), py::arg("head_dim"));
  m.def(
      "mrope_table",
      [](TensorView out, TensorView positions, Scalar<int64_t> head_dim, Scalar<float> theta,
         Scalar<int64_t> freq_allocation) {
        check_table("mrope_table", out, positions, 2, head_dim);
        run(mrope_table,
            {.out = out,
             .positions = positions,
             .theta = theta.get("mrope_table", "theta"),
             .freq_allocation = freq_allocation.get("mrope_table", "freq_allocation")},
            {&out, &positions});
      },
      py::arg("out"), py::arg("positions"), py::arg("head_dim"), py::arg("theta"),
      py::arg("freq_allocation"));
  m.def(
      "rope_2d_table_out",
      [](TensorView positions, Scalar<int64_t> head_dim) {
        return table_of("rope_2d_table", positions, 2, head_dim, 4);
      },
      py::arg("positions"), py::arg("head_dim"));
  m.def(
      "rope_2d_table",
      [](TensorView out, TensorView positions, Scalar<int64_t> head_dim, Scalar<float> theta) {
        check_table("rope_2d_table", out, positions, 2, head_dim);
        run(rope_2d_table,
            {.out = out, .positions = positions, .theta = theta.get("rope_2d_table", "theta")},
            {&out, &positions});
      },
      py::arg("out"), py::arg("positions"), py::arg("head_dim"), py::arg("theta"));
  // The table that rope() makes on the fly; what is wrong is said in terms of its own arguments.
  m.def(
      "rope_positions_out",
      [](TensorView query, TensorView positions) {
        const Check check("rope");
        check.rank("query", query, 3);
        check.shape("positions", positions, {{"num_tokens", query.size(0)}});
        check.dtype("positions", positions, {DType::kI64});
        check.contiguous("positions", positions);
        if (query.size(2) % 2 != 0)
          check.fail("query", "an even head_dim", "shape " + shape_string(query));
        return empty({query.size(0), query.size(2)}, DType::kF32, stream_of({&query, &positions}));
      },
      py::arg("query"), py::arg("positions"));
  m.def(
      "rope",
      [](TensorView query, TensorView key, TensorView table) {
        run(rope, {.query = query, .key = key, .table = table}, {&query, &key, &table});
      },
      py::arg("query"), py::arg("key"), py::arg("table"));
  m.def(
      "rope_2d",
      [](TensorView query, TensorView key, TensorView table) {
        run(rope_2d, {.query = query, .key = key, .table = table}, {&query, &key, &table});
      },
      py::arg("query"), py::arg("key"), py::arg("table"));
}

}  // namespace ernie::bindings
