#include "ops/sampling.h"

#include <array>

#include "bindings/scalar_caster.h"
#include "bindings/tensor.h"
#include "bindings/tensor_caster.h"
#include "core/check.h"
#include "ops/sampling_core.h"

namespace py = pybind11;

namespace ernie::bindings {
namespace {

using Words = std::array<uint32_t, 4>;

void bind_sample(py::module_& m) {
  m.def(
      "sample",
      [](TensorView out, TensorView logits, TensorView temperature, TensorView top_k,
         TensorView top_p, TensorView min_p, TensorView seed, TensorView position,
         std::optional<Scalar<int64_t>> vocab_limit) {
        Check("sample").rank("logits", logits, 2);
        const Stream stream = stream_of({&out, &logits});
        const int64_t bytes = sample_workspace_size(stream.device, logits.size(0), logits.size(1));
        const Tensor workspace = empty({bytes}, DType::kU8, stream);
        run(sample,
            {.out = out,
             .logits = logits,
             .temperature = temperature,
             .top_k = top_k,
             .top_p = top_p,
             .min_p = min_p,
             .seed = seed,
             .position = position,
             .vocab_limit =
                 vocab_limit ? vocab_limit->get("sample", "vocab_limit") : logits.size(1),
             .workspace = workspace.view},
            {&out, &logits, &temperature, &top_k, &top_p, &min_p, &seed, &position});
      },
      py::arg("out"), py::arg("logits"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
      py::arg("min_p"), py::arg("seed"), py::arg("position"), py::arg("vocab_limit"));
}

void bind_apply_penalties(py::module_& m) {
  m.def(
      "apply_penalties",
      [](TensorView logits, TensorView token_ids, TensorView cu_tokens, TensorView prompt_lens,
         TensorView repetition_penalty, TensorView presence_penalty, TensorView frequency_penalty) {
        run(apply_penalties,
            {.logits = logits,
             .token_ids = token_ids,
             .cu_tokens = cu_tokens,
             .prompt_lens = prompt_lens,
             .repetition_penalty = repetition_penalty,
             .presence_penalty = presence_penalty,
             .frequency_penalty = frequency_penalty},
            {&logits, &token_ids, &cu_tokens, &prompt_lens, &repetition_penalty, &presence_penalty,
             &frequency_penalty});
      },
      py::arg("logits"), py::arg("token_ids"), py::arg("cu_tokens"), py::arg("prompt_lens"),
      py::arg("repetition_penalty"), py::arg("presence_penalty"), py::arg("frequency_penalty"));
}

}  // namespace

void bind_sampling(py::module_& m) {
  bind_sample(m);
  bind_apply_penalties(m);
  m.def(
      "sample_out",
      [](TensorView logits, const char* op) {
        Check(op).rank("logits", logits, 2);
        return empty({logits.size(0)}, DType::kI64, stream_of({&logits}));
      },
      py::arg("logits"), py::arg("op"));
  m.def(
      "sample_rows",
      [](TensorView logits, const char* op) {
        Check(op).rank("logits", logits, 2);
        return py::make_tuple(logits.size(0), to_string(logits.device));
      },
      py::arg("logits"), py::arg("op"));
  m.def(
      "philox",
      [](const Words& counter, const std::array<uint32_t, 2>& key) {
        const PhiloxBlock block =
            philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
        return Words{block.word[0], block.word[1], block.word[2], block.word[3]};
      },
      py::arg("counter"), py::arg("key"));
}

}  // namespace ernie::bindings
