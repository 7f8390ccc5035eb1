#include "core/check.h"

#include <algorithm>

#include "core/error.h"

namespace ernie {
namespace {

// The bytes [first, last) that a view touches; empty views touch none.
std::pair<const char*, const char*> extent_of(const TensorView& t) {
  int64_t low = 0, high = 0;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] == 0) return {nullptr, nullptr};
    const int64_t last = (t.shape[i] - 1) * t.stride[i];
    (last < 0 ? low : high) += last;
  }
  const char* base = static_cast<const char*>(t.data);
  return {base + low * size_of(t.dtype), base + (high + 1) * size_of(t.dtype)};
}

// Whether `a` and `b` are columns of the same rows, as query and key of a fused projection are:
// their extents interleave, but in no row do they meet.
bool side_by_side(const TensorView& a, const TensorView& b) {
  if (a.rank == 0 || b.rank == 0 || size_of(a.dtype) != size_of(b.dtype)) return false;
  const int64_t row = a.stride[0];
  if (row <= 0 || b.stride[0] != row) return false;
  TensorView a_row = a, b_row = b;
  a_row.shape[0] = b_row.shape[0] = 1;
  const auto [a_first, a_last] = extent_of(a_row);
  const auto [b_first, b_last] = extent_of(b_row);
  const auto fits = [&](const char* first, const char* last, const char* next,
                        const char* next_last) {
    return last <= next && next_last - first <= row * size_of(a.dtype);
  };
  return fits(a_first, a_last, b_first, b_last) || fits(b_first, b_last, a_first, a_last);
}

}  // namespace

void Check::fail(const char* name, const std::string& expected, const std::string& got) const {
  throw ArgumentError(std::string(op_) + ": " + name + ": expected " + expected + ", got " + got);
}

void Check::is_tensor(const char* name, const TensorView& t) const {
  if (t.defect != nullptr) throw ArgumentError(std::string(op_) + ": " + name + ": " + t.defect);
  if (t.not_a_tensor == nullptr) return;
  throw TypeError(std::string(op_) + ": " + name +
                  ": expected a tensor (ernie_kernels.Tensor, numpy or any DLPack object), got " +
                  t.not_a_tensor);
}

void Check::rank(const char* name, const TensorView& t, int expected) const {
  is_tensor(name, t);
  if (t.rank == expected) return;
  fail(name, std::to_string(expected) + (expected == 1 ? " dimension" : " dimensions"),
       "shape " + shape_string(t));
}

void Check::shape(const char* name, const TensorView& t,
                  std::initializer_list<Dim> expected) const {
  is_tensor(name, t);
  const auto same = [](const Dim& dim, int64_t size) { return dim.size == size; };
  if (std::equal(expected.begin(), expected.end(), t.shape, t.shape + t.rank, same)) return;
  std::string want;
  for (const Dim& dim : expected)
    want += (want.empty() ? "" : ", ") + std::string(dim.name) + "=" + std::to_string(dim.size);
  fail(name, "shape [" + want + "]", shape_string(t));
}

void Check::dtype(const char* name, const TensorView& t,
                  std::initializer_list<DType> allowed) const {
  is_tensor(name, t);
  if (std::find(allowed.begin(), allowed.end(), t.dtype) != allowed.end()) return;
  std::string want;
  for (DType d : allowed) want += (want.empty() ? "" : " or ") + std::string(name_of(d));
  fail(name, want, name_of(t.dtype));
}

void Check::device(Device expected, std::initializer_list<Named> tensors) const {
  for (const auto& [name, t] : tensors)
    if (t->device != expected)
      fail(name, "device " + to_string(expected) + " like the other arguments",
           to_string(t->device));
}

void Check::contiguous(const char* name, const TensorView& t) const {
  is_tensor(name, t);
  if (t.numel() == 0) return;
  int64_t step = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] > 1 && t.stride[i] != step)
      fail(name, "a contiguous tensor", "a strided view of shape " + shape_string(t));
    step *= t.shape[i];
  }
}

void Check::inner_contiguous(const char* name, const TensorView& t) const {
  is_tensor(name, t);
  if (t.rank > 0 && (t.size(-1) <= 1 || t.step(-1) == 1 || t.numel() == 0)) return;
  fail(name, "stride 1 in the last dimension",
       t.rank > 0 ? "stride " + std::to_string(t.step(-1)) : "a scalar");
}

void Check::writable(const char* name, const TensorView& t) const {
  is_tensor(name, t);
  if (t.readonly) fail(name, "a writable tensor", "a read-only one");
  // Strides that grow outwards past the extent within keep elements apart; every slice does.
  if (t.numel() == 0) return;
  int64_t reach = 0;
  for (int i = t.rank - 1; i >= 0; --i) {
    if (t.shape[i] <= 1) continue;
    const int64_t step = std::abs(t.stride[i]);
    if (step <= reach)
      fail(name, "distinct elements",
           "a view of shape " + shape_string(t) + " with stride " + std::to_string(t.stride[i]) +
               " in dimension " + std::to_string(i));
    reach += step * (t.shape[i] - 1);
  }
}

void Check::disjoint(const char* a_name, const TensorView& a, const char* b_name,
                     const TensorView& b) const {
  const auto [a_first, a_last] = extent_of(a);
  const auto [b_first, b_last] = extent_of(b);
  if (a_first == a_last || b_first == b_last || a_last <= b_first || b_last <= a_first) return;
  if (a.device != b.device || side_by_side(a, b)) return;
  fail(a_name, std::string("memory apart from ") + b_name, std::string("memory that it shares"));
}

void Check::disjoint_or_same_rows(const char* a_name, const TensorView& a, const char* b_name,
                                  const TensorView& b) const {
  // The stride of a single row leads nowhere: views of one row may have any.
  const bool same_rows = a.rank == 2 && b.rank == 2 && a.data == b.data && a.dtype == b.dtype &&
                         a.size(0) == b.size(0) && a.size(1) == b.size(1) &&
                         (a.size(0) <= 1 || a.step(0) == b.step(0));
  if (!same_rows) disjoint(a_name, a, b_name, b);
}

}  // namespace ernie
