#include "ops/embedding.h"

#include "core/check.h"
#include "core/checked.h"
#include "core/dispatch.h"

namespace ernie {
namespace {

constexpr int64_t kPanelRows = 16;  // of a packed table: gemm.h, wint8.h, wint4.h

void check_table(const Check& check, const TensorView& w, int64_t vocab_size, int64_t hidden_size) {
  const int64_t panels = vocab_size > 0 ? ceil_div(vocab_size, kPanelRows) : 0;
  if (w.rank == 2 && w.dtype == DType::kU8)
    check.shape("weight", w,
                {{"vocab_size", vocab_size}, {"ceil(hidden_size / 2)", ceil_div(hidden_size, 2)}});
  else if (w.rank == 2)
    check.shape("weight", w, {{"vocab_size", vocab_size}, {"hidden_size", hidden_size}});
  else if (w.dtype == DType::kBF16)
    check.shape("weight", w,
                {{"ceil(vocab_size / 16)", panels},
                 {"ceil(hidden_size / 2)", ceil_div(hidden_size, 2)},
                 {"16", kPanelRows},
                 {"2", 2}});
  else if (w.dtype == DType::kI8)
    check.shape("weight", w,
                {{"ceil(vocab_size / 16)", panels},
                 {"ceil(hidden_size / 4)", ceil_div(hidden_size, 4)},
                 {"16", kPanelRows},
                 {"4", 4}});
  else if (w.dtype == DType::kU8)
    check.shape("weight", w,
                {{"ceil(vocab_size / 16)", panels},
                 {"ceil(hidden_size / 8)", ceil_div(hidden_size, 8)},
                 {"16", kPanelRows},
                 {"4", 4}});
  else
    check.shape("weight", w,
                {{"ceil(vocab_size / 16)", panels}, {"hidden_size", hidden_size}, {"16", 16}});
  check.contiguous("weight", w);
}

void check_scale(const Check& check, const EmbeddingArgs& a, const Stream& stream) {
  const bool is_rounded = a.weight.dtype == DType::kI8 || a.weight.dtype == DType::kU8;
  if (a.scale.has_value() != is_rounded)
    check.fail("scale", "one with an int8 or uint8 weight, and none with another",
               std::string(a.scale ? "one with " : "none with ") + name_of(a.weight.dtype));
  if (!a.scale) return;
  check.shape("scale", *a.scale, {{"vocab_size", a.vocab_size}});
  check.dtype("scale", *a.scale, {DType::kF32});
  check.contiguous("scale", *a.scale);
  check.disjoint("out", a.out, "scale", *a.scale);
  check.device(stream.device, {{"scale", &*a.scale}});
}

}  // namespace

void embedding(const EmbeddingArgs& a, const Stream& stream) {
  const Check check("embedding");
  check.rank("input_ids", a.input_ids, 1);
  check.dtype("input_ids", a.input_ids, {DType::kI64});
  check.contiguous("input_ids", a.input_ids);
  check.dtype("weight", a.weight, {DType::kF32, DType::kBF16, DType::kI8, DType::kU8});
  check.rank("out", a.out, 2);
  const int64_t num_tokens = a.input_ids.size(0), hidden_size = a.out.size(1);
  check.shape("out", a.out, {{"num_tokens", num_tokens}, {"hidden_size", hidden_size}});
  check.dtype("out", a.out, {DType::kF32, DType::kBF16});
  check.inner_contiguous("out", a.out);
  check.writable("out", a.out);
  check_table(check, a.weight, a.vocab_size, hidden_size);
  check.disjoint("out", a.out, "input_ids", a.input_ids);
  check.disjoint("out", a.out, "weight", a.weight);
  check.device(stream.device,
               {{"out", &a.out}, {"input_ids", &a.input_ids}, {"weight", &a.weight}});
  check_scale(check, a, stream);
  if (stream.device.type == DeviceType::kCuda && a.weight.rank != 2)
    check.fail("weight", "[vocab_size, hidden_size] on a CUDA device", "a packed table");
  if (a.out.numel() == 0) return;
  dispatch("embedding", {&cpu::embedding, ERNIE_CUDA_FN(cuda::embedding)}, a, stream);
}

}  // namespace ernie
