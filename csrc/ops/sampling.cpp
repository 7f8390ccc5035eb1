#include "ops/sampling.h"

#include "core/check.h"
#include "core/dispatch.h"

namespace ernie {
namespace {

void check_logits(const Check& check, const TensorView& logits) {
  check.rank("logits", logits, 2);
  check.dtype("logits", logits, {DType::kF32});
  check.inner_contiguous("logits", logits);
  if (logits.size(1) > INT32_MAX)
    check.fail("logits", "a vocab_size below 2^31", "shape " + shape_string(logits));
}

// A vector that the op reads beside the logits.
struct Column {
  const char* name;
  const TensorView* tensor;
  DType dtype;
  Dim extent;
};

void check_column(const Check& check, const Column& c, const char* written_name,
                  const TensorView& written, Device device) {
  check.shape(c.name, *c.tensor, {c.extent});
  check.dtype(c.name, *c.tensor, {c.dtype});
  check.contiguous(c.name, *c.tensor);
  check.disjoint(written_name, written, c.name, *c.tensor);
  check.device(device, {{c.name, c.tensor}});
}

}  // namespace

int64_t sample_workspace_size(Device device, int64_t num_seqs, int64_t vocab_size) {
#if ERNIE_WITH_CUDA
  if (device.type == DeviceType::kCuda) return cuda::sample_workspace_size(num_seqs, vocab_size);
#else
  (void)device, (void)num_seqs, (void)vocab_size;
#endif
  return 0;
}

void apply_penalties(const ApplyPenaltiesArgs& a, const Stream& stream) {
  const Check check("apply_penalties");
  check_logits(check, a.logits);
  check.writable("logits", a.logits);
  check.rank("token_ids", a.token_ids, 1);
  const Dim rows{"num_seqs", a.logits.size(0)};
  for (const Column& column :
       {Column{"token_ids", &a.token_ids, DType::kI64, {"total", a.token_ids.size(0)}},
        Column{"cu_tokens", &a.cu_tokens, DType::kI32, {"num_seqs + 1", rows.size + 1}},
        Column{"prompt_lens", &a.prompt_lens, DType::kI32, rows},
        Column{"repetition_penalty", &a.repetition_penalty, DType::kF32, rows},
        Column{"presence_penalty", &a.presence_penalty, DType::kF32, rows},
        Column{"frequency_penalty", &a.frequency_penalty, DType::kF32, rows}})
    check_column(check, column, "logits", a.logits, stream.device);
  check.device(stream.device, {{"logits", &a.logits}});
  if (a.logits.size(0) == 0) return;
  dispatch("apply_penalties", {&cpu::apply_penalties, ERNIE_CUDA_FN(cuda::apply_penalties)}, a,
           stream);
}

void sample(const SampleArgs& a, const Stream& stream) {
  const Check check("sample");
  check_logits(check, a.logits);
  const Dim rows{"num_seqs", a.logits.size(0)};
  const int64_t vocab_size = a.logits.size(1);
  check.shape("out", a.out, {rows});
  check.dtype("out", a.out, {DType::kI64});
  check.contiguous("out", a.out);
  check.writable("out", a.out);
  check.disjoint("out", a.out, "logits", a.logits);
  for (const Column& column :
       {Column{"temperature", &a.temperature, DType::kF32, rows},
        Column{"top_k", &a.top_k, DType::kI32, rows}, Column{"top_p", &a.top_p, DType::kF32, rows},
        Column{"min_p", &a.min_p, DType::kF32, rows}, Column{"seed", &a.seed, DType::kI64, rows},
        Column{"position", &a.position, DType::kI64, rows}})
    check_column(check, column, "out", a.out, stream.device);
  if (a.vocab_limit < 1 || a.vocab_limit > vocab_size)
    check.fail("vocab_limit", "a value from 1 to vocab_size=" + std::to_string(vocab_size),
               std::to_string(a.vocab_limit));
  const int64_t bytes = sample_workspace_size(stream.device, rows.size, vocab_size);
  check.rank("workspace", a.workspace, 1);
  check.dtype("workspace", a.workspace, {DType::kU8});
  check.contiguous("workspace", a.workspace);
  check.writable("workspace", a.workspace);
  if (a.workspace.size(0) < bytes)
    check.fail("workspace", "at least " + std::to_string(bytes) + " bytes",
               std::to_string(a.workspace.size(0)));
  check.device(stream.device,
               {{"logits", &a.logits}, {"out", &a.out}, {"workspace", &a.workspace}});
  if (rows.size == 0) return;
  dispatch("sample", {&cpu::sample, ERNIE_CUDA_FN(cuda::sample)}, a, stream);
}

}  // namespace ernie
