#include "ops/grouped_gemm.h"

#include <string>

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"
#include "ops/linear_checks.h"
#include "ops/moe_core.h"

namespace ernie {
namespace {

void check_plain(const Check& check, const char* name, const ExpertWeights& w, Dim experts) {
  const Dim out_features{"out_features", w.out_features};
  if (w.weight.dtype == DType::kU8)
    check.shape(name, w.weight,
                {experts, out_features, {"ceil(in_features / 2)", ceil_div(w.in_features, 2)}});
  else
    check.shape(name, w.weight, {experts, out_features, {"in_features", w.in_features}});
}

void check_panels(const Check& check, const char* name, const ExpertWeights& w, Dim experts) {
  const Dim panels = panels_of(w.out_features);
  const Dim rows{"16", kPanelRows};
  const int64_t k = w.in_features;
  switch (w.weight.dtype) {
    case DType::kF32:
      return check.shape(name, w.weight, {experts, panels, {"in_features", k}, rows});
    case DType::kBF16:
      return check.shape(
          name, w.weight,
          {experts, panels, {"ceil(in_features / 2)", ceil_div(k, 2)}, rows, {"2", 2}});
    case DType::kI8:
      return check.shape(
          name, w.weight,
          {experts, panels, {"ceil(in_features / 4)", ceil_div(k, 4)}, rows, {"4", 4}});
    default:
      return check.shape(
          name, w.weight,
          {experts, panels, {"ceil(in_features / 8)", ceil_div(k, 8)}, rows, {"4", 4}});
  }
}

// That `written` is apart from every input.
template <class Args>
void check_written(const Check& check, const char* name, const TensorView& written, const Args& a) {
  check.inner_contiguous(name, written);
  check.writable(name, written);
  check.disjoint(name, written, "x", a.x);
  check.disjoint(name, written, "weight", a.weight.weight);
  if (a.weight.scale) check.disjoint(name, written, "weight.scale", *a.weight.scale);
  check.disjoint(name, written, "expert_offsets", a.expert_offsets);
  if (a.source_rows) check.disjoint(name, written, "source_rows", *a.source_rows);
}

// All of a grouped product but its output's width.
template <class Args>
void check_product(const char* op, const Args& a, int64_t num_rows, const Stream& stream) {
  const Check check(op);
  check.shape("x", a.x,
              {a.source_rows ? Dim{"num_tokens", a.x.size(0)} : Dim{"num_rows", num_rows},
               {"in_features", a.weight.in_features}});
  const int64_t num_experts =
      check_expert_weights(op, "weight", "weight.scale", a.weight, a.x.dtype, stream);
  check.shape("expert_offsets", a.expert_offsets, {{"num_experts + 1", num_experts + 1}});
  check.dtype("expert_offsets", a.expert_offsets, {DType::kI64});
  check.contiguous("expert_offsets", a.expert_offsets);
  if (a.source_rows) {
    check.shape("source_rows", *a.source_rows, {{"num_rows", num_rows}});
    check.dtype("source_rows", *a.source_rows, {DType::kI32});
    check.contiguous("source_rows", *a.source_rows);
    check.device(stream.device, {{"source_rows", &*a.source_rows}});
  }
  if (a.workspace) {
    check.rank("workspace", *a.workspace, 1);
    check.dtype("workspace", *a.workspace, {DType::kU8});
    check_written(check, "workspace", *a.workspace, a);
    check.disjoint("workspace", *a.workspace, "out", a.out);
    check.device(stream.device, {{"workspace", &*a.workspace}});
  }
  if (a.int8_activations) check_int8_activations(op, "weight", a.weight, stream);
  check.device(stream.device,
               {{"out", &a.out}, {"x", &a.x}, {"expert_offsets", &a.expert_offsets}});
}

}  // namespace

int64_t check_expert_weights(const char* op, const char* name, const char* scale_name,
                             const ExpertWeights& w, DType x, const Stream& stream) {
  const Check check(op);
  check.dtype(name, w.weight, {DType::kF32, DType::kBF16, DType::kI8, DType::kU8});
  if (w.weight.dtype == DType::kF32 && x != DType::kF32)
    check.fail(name, "bfloat16, int8 or uint8 beside bfloat16 rows", "float32");
  const Dim experts{"num_experts", w.weight.size(0)};
  if (experts.size < 1 || experts.size > kMoeMaxExperts)
    check.fail(name, "1 to " + std::to_string(kMoeMaxExperts) + " experts",
               "shape " + shape_string(w.weight));
  if (w.out_features < 0)
    check.fail(name, "out_features of 0 or more", std::to_string(w.out_features));
  if (w.weight.rank == 3)
    check_plain(check, name, w, experts);
  else
    check_panels(check, name, w, experts);
  check.contiguous(name, w.weight);
  check.device(stream.device, {{name, &w.weight}});
  if (stream.device.type == DeviceType::kCuda && w.weight.rank != 3)
    check.fail(name, "[num_experts, out_features, in_features] on a CUDA device",
               "a packed weight");
  const bool is_quantized = w.weight.dtype == DType::kI8 || w.weight.dtype == DType::kU8;
  if (is_quantized != w.scale.has_value())
    check.fail(scale_name,
               is_quantized ? "[num_experts, out_features] beside a quantized weight"
                            : std::string("none beside ") + name_of(w.weight.dtype),
               w.scale ? "shape " + shape_string(*w.scale) : "none");
  if (w.scale) {
    check.shape(scale_name, *w.scale, {experts, {"out_features", w.out_features}});
    check.dtype(scale_name, *w.scale, {DType::kF32});
    check.contiguous(scale_name, *w.scale);
    check.device(stream.device, {{scale_name, &*w.scale}});
  }
  return experts.size;
}

void check_int8_activations(const char* op, const char* name, const ExpertWeights& w,
                            const Stream& stream) {
  if (w.weight.dtype != DType::kI8)
    Check(op).fail(name, "int8 with int8_activations", name_of(w.weight.dtype));
  if (stream.device.type == DeviceType::kCuda)
    throw UnsupportedError(std::string(op) + ": int8_activations: no kernel for " +
                           to_string(stream.device) + "; pass False");
}

int64_t grouped_linear_workspace_size(Device device, const GroupedLinearSize& size) {
#if ERNIE_WITH_CUDA
  if (device.type == DeviceType::kCuda && size.num_rows > 0 && size.num_experts > 0)
    return cuda::grouped_linear_workspace_size(device, size);
#else
  (void)device, (void)size;
#endif
  return 0;
}

void grouped_linear(const GroupedLinearArgs& a, const Stream& stream) {
  const Check check("grouped_linear");
  check_x(check, a.x);
  check.rank("out", a.out, 2);
  const int64_t num_rows = a.out.size(0);
  check_product("grouped_linear", a, num_rows, stream);
  check.shape("out", a.out, {{"num_rows", num_rows}, {"out_features", a.weight.out_features}});
  check.dtype("out", a.out, {a.x.dtype});
  check_written(check, "out", a.out, a);
  dispatch("grouped_linear", {&cpu::grouped_linear, ERNIE_CUDA_FN(cuda::grouped_linear)}, a,
           stream);
}

void grouped_linear_silu_and_mul(const GroupedLinearSiluAndMulArgs& a, const Stream& stream) {
  const char* op = "grouped_linear_silu_and_mul";
  const Check check(op);
  check_x(check, a.x);
  check.rank("out", a.out, 2);
  const int64_t num_rows = a.out.size(0), intermediate_size = a.out.size(1);
  if (a.weight.out_features != 2 * intermediate_size)
    check.fail("out",
               "out_features / 2 columns, out_features=" + std::to_string(a.weight.out_features),
               "shape " + shape_string(a.out));
  check_product(op, a, num_rows, stream);
  check.dtype("out", a.out, {a.x.dtype});
  check_written(check, "out", a.out, a);
  dispatch(op,
           {&cpu::grouped_linear_silu_and_mul, ERNIE_CUDA_FN(cuda::grouped_linear_silu_and_mul)}, a,
           stream);
}

}  // namespace ernie
