#include "core/storage.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/checked.h"
#include "core/error.h"
#include "core/memory.h"

namespace ernie {
namespace {

std::string list_of(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

void set_compact(TensorView& v, const std::vector<int64_t>& shape) {
  v.rank = static_cast<int32_t>(shape.size());
  int64_t step = 1;
  for (int i = v.rank - 1; i >= 0; --i) {
    v.shape[i] = shape[i];
    v.stride[i] = step;
    step *= shape[i] > 0 ? shape[i] : 1;
  }
}

// Copies row by row: only host tensors are ever strided here (device views are copied whole).
void gather(const TensorView& from, char* to, int dim, int64_t offset, int64_t width) {
  if (dim == from.rank) {
    std::memcpy(to, static_cast<const char*>(from.data) + offset * width, width);
    return;
  }
  int64_t inner = width;
  for (int i = dim + 1; i < from.rank; ++i) inner *= from.shape[i];
  for (int64_t i = 0; i < from.shape[dim]; ++i)
    gather(from, to + i * inner, dim + 1, offset + i * from.stride[dim], width);
}

// Of a new tensor, whose view it sets; its bytes.
int64_t set_shape(const std::vector<int64_t>& shape, DType dtype, TensorView* view) {
  if (shape.size() > TensorView::kMaxRank)
    throw ArgumentError("empty: shape: expected at most 6 dimensions, got " + list_of(shape));
  int64_t nbytes = size_of(dtype);
  bool zero = false;
  for (int64_t extent : shape) {
    if (extent < 0)
      throw ArgumentError("empty: shape: expected extents >= 0, got " + list_of(shape));
    zero = zero || extent == 0;
    if (extent > 0 && !checked_mul(nbytes, extent, &nbytes))
      throw ArgumentError("empty: shape: expected fewer than 2^63 bytes, got " + list_of(shape));
  }
  view->dtype = dtype;
  set_compact(*view, shape);
  return zero ? 0 : nbytes;
}

}  // namespace

bool Tensor::is_contiguous() const {
  if (view.numel() == 0) return true;
  int64_t step = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    if (view.shape[i] != 1 && view.stride[i] != step) return false;
    step *= view.shape[i];
  }
  return true;
}

Tensor empty(const std::vector<int64_t>& shape, DType dtype, const Stream& stream) {
  Tensor t;
  const int64_t nbytes = set_shape(shape, dtype, &t.view);
  t.view.device = stream.device;
  t.view.stream = stream.handle;
  t.storage = allocate(nbytes, stream);
  t.view.data = t.storage.get();
  return t;
}

Tensor empty_pinned(const std::vector<int64_t>& shape, DType dtype, Device device) {
  Tensor t;
  t.storage = allocate_pinned(set_shape(shape, dtype, &t.view), device);
  t.view.data = t.storage.get();
  return t;
}

void queue_copy(const TensorView& to, const TensorView& from, const Stream& stream) {
  const Check check("queue_copy");
  check.rank("to", to, to.rank);  // reports what is no tensor
  check.rank("from", from, to.rank);
  check.dtype("from", from, {to.dtype});
  check.contiguous("to", to);
  check.contiguous("from", from);
  check.writable("to", to);
  if (!std::equal(to.shape, to.shape + to.rank, from.shape))
    check.fail("from", "shape " + shape_string(to) + " of to", shape_string(from));
  const int64_t nbytes = to.numel() * size_of(to.dtype);
  for (const TensorView* t : {&to, &from})
    if (t->device.type == DeviceType::kCuda && t->device != stream.device)
      check.fail("from", "one GPU", to_string(to.device) + " and " + to_string(from.device));
  if (nbytes == 0) return;
  if (stream.device.type == DeviceType::kCpu) {
    std::memmove(to.data, from.data, nbytes);
    return;
  }
#if ERNIE_WITH_CUDA
  cuda::queue_copy(to.data, from.data, nbytes, stream);
#else
  raise_no_cuda("queue_copy: " + to_string(stream.device));
#endif
}

Tensor copy_to(const Tensor& from, const Stream& stream) {
  const std::vector<int64_t> shape(from.view.shape, from.view.shape + from.view.rank);
  if (!from.is_contiguous()) {
    if (from.view.device.type == DeviceType::kCuda)
      throw UnsupportedError("to: expected a contiguous tensor on " + to_string(from.view.device) +
                             ", got a strided view of shape " + shape_string(from.view));
    Tensor compact = empty(shape, from.view.dtype, {});
    if (compact.nbytes() > 0)
      gather(from.view, compact.view.ptr<char>(), 0, 0, size_of(from.view.dtype));
    return stream.device.type == DeviceType::kCpu ? compact : copy_to(compact, stream);
  }
  const Stream source{from.view.device, from.view.stream};
  const bool from_cuda = source.device.type == DeviceType::kCuda;
  const bool to_cuda = stream.device.type == DeviceType::kCuda;
  // Neither GPU may read the other's memory without being granted it, nor do their streams wait
  // for each other.
  if (from_cuda && to_cuda && source.device != stream.device)
    return copy_to(copy_to(from, {}), stream);
  Tensor to = empty(shape, from.view.dtype, stream);
#if ERNIE_WITH_CUDA
  if (from_cuda && to_cuda && source.handle != stream.handle) cuda::wait_for(stream, source.handle);
#endif
  copy_bytes(to.view.data, to.view.device, from.view.data, from.view.device, from.nbytes(),
             to_cuda ? stream.handle : source.handle);
  return to;
}

Tensor reshape(const Tensor& from, std::vector<int64_t> shape) {
  const int64_t numel = from.view.numel();
  int64_t known = 1, *unknown = nullptr;
  bool fits = shape.size() <= TensorView::kMaxRank;
  for (int64_t& extent : shape) {
    if (extent == -1 && unknown == nullptr)
      unknown = &extent;
    else
      fits = fits && extent >= 0 && checked_mul(known, extent, &known);
  }
  const std::string wanted = list_of(shape);
  if (unknown != nullptr) {
    fits = fits && known > 0 && numel % known == 0;
    if (fits) *unknown = numel / known;
  } else {
    fits = fits && known == numel;
  }
  if (!fits)
    throw ArgumentError("reshape: shape: expected " + std::to_string(numel) + " elements as in " +
                        shape_string(from.view) + ", got " + wanted);
  if (!from.is_contiguous())
    throw ArgumentError("reshape: expected a contiguous tensor, got a strided view of shape " +
                        shape_string(from.view));
  Tensor t = from;
  set_compact(t.view, shape);
  return t;
}

Tensor view_as(const Tensor& from, DType dtype) {
  const int64_t size = size_of(dtype);
  if (!from.is_contiguous() || from.nbytes() % size != 0 ||
      reinterpret_cast<uintptr_t>(from.view.data) % size != 0)
    throw ArgumentError(std::string("view_as: expected a contiguous tensor of whole, aligned ") +
                        name_of(dtype) + " elements, got " + name_of(from.view.dtype) +
                        " of shape " + shape_string(from.view));
  Tensor t = from;
  t.view.dtype = dtype;
  set_compact(t.view, {from.nbytes() / size});
  return t;
}

Tensor narrow(const Tensor& from, int dim, int64_t begin, int64_t end) {
  Tensor t = from;
  t.view.data =
      static_cast<char*>(t.view.data) + begin * t.view.stride[dim] * size_of(t.view.dtype);
  t.view.shape[dim] = end - begin;
  return t;
}

}  // namespace ernie
