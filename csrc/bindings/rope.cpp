#include "ops/rope.h"

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"

namespace py = pybind11;

namespace ernie::bindings {

void bind_rope(py::module_& m) {
  m.def(
      "rope_table_out",
      [](TensorView positions, Scalar<int64_t> head_dim_) {
        const Check check("rope_table");
        const int64_t head_dim = head_dim_.get("rope_table", "head_dim");
        check.rank("positions", positions, 1);
        if (head_dim < 2 || head_dim % 2 != 0)
          check.fail("head_dim", "an even value >= 2", std::to_string(head_dim));
        return empty({positions.size(0), head_dim}, DType::kF32, stream_of({&positions}));
      },
      py::arg("positions"), py::arg("head_dim"));
  m.def(
      "rope_table",
      [](TensorView out, TensorView positions, Scalar<int64_t> head_dim_, Scalar<float> theta) {
        const Check check("rope_table");
        const int64_t head_dim = head_dim_.get("rope_table", "head_dim");
        check.rank("positions", positions, 1);
        check.shape("out", out, {{"num_tokens", positions.size(0)}, {"head_dim", head_dim}});
        run(rope_table,
            {.out = out, .positions = positions, .theta = theta.get("rope_table", "theta")},
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
}

}  // namespace ernie::bindings
