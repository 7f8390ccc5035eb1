#include "ops/embedding.h"

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

Tensor embedding_out(const TensorView& input_ids, const TensorView& weight,
                     std::optional<int64_t> hidden_size,
                     const std::optional<Scalar<std::string>>& dtype) {
  const Check check("embedding");
  check.rank("input_ids", input_ids, 1);
  if (!hidden_size) {
    check.rank("weight", weight, 2);
    hidden_size = weight.size(1) * (weight.dtype == DType::kU8 ? 2 : 1);
  }
  const bool is_rounded = weight.dtype == DType::kI8 || weight.dtype == DType::kU8;
  const DType stored = is_rounded ? DType::kF32 : weight.dtype;
  const DType wanted =
      dtype ? dtype_named(dtype->get("embedding", "dtype"), "embedding: dtype") : stored;
  return empty({input_ids.size(0), *hidden_size}, wanted, stream_of({&input_ids, &weight}));
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def("embedding_out", &embedding_out, py::arg("input_ids"), py::arg("weight"),
        py::arg("hidden_size"), py::arg("dtype"));
  m.def(
      "embedding",
      [](TensorView out, TensorView input_ids, TensorView weight, std::optional<TensorView> scale,
         std::optional<Scalar<int64_t>> vocab_size) {
        if (!vocab_size) Check("embedding").rank("weight", weight, 2);
        const int64_t rows =
            vocab_size ? vocab_size->get("embedding", "vocab_size") : weight.size(0);
        run(embedding,
            {.out = out,
             .input_ids = input_ids,
             .weight = weight,
             .scale = scale,
             .vocab_size = rows},
            {&out, &input_ids, &weight, pointer_to(scale)});
      },
      py::arg("out"), py::arg("input_ids"), py::arg("weight"), py::arg("scale"),
      py::arg("vocab_size"));
}

}  // namespace ernie::bindings
