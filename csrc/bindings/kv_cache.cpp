#include "ops/kv_cache.h"

#include "bindings/tensor_caster.h"

namespace py = pybind11;

namespace ernie::bindings {

void bind_kv_cache(py::module_& m) {
  m.def(
      "kv_cache_write",
      [](TensorView key, TensorView value, TensorView k_cache, TensorView v_cache,
         TensorView slot_mapping) {
        run(kv_cache_write,
            {.key = key,
             .value = value,
             .k_cache = k_cache,
             .v_cache = v_cache,
             .slot_mapping = slot_mapping},
            {&key, &value, &k_cache, &v_cache, &slot_mapping});
      },
      py::arg("key"), py::arg("value"), py::arg("k_cache"), py::arg("v_cache"),
      py::arg("slot_mapping"));
  m.def(
      "kv_cache_copy_blocks",
      [](TensorView k_cache, TensorView v_cache, TensorView block_mapping) {
        run(kv_cache_copy_blocks,
            {.k_cache = k_cache, .v_cache = v_cache, .block_mapping = block_mapping},
            {&k_cache, &v_cache, &block_mapping});
      },
      py::arg("k_cache"), py::arg("v_cache"), py::arg("block_mapping"));
}

}  // namespace ernie::bindings
