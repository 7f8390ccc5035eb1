// Tensor: the one owner of memory that this library has. A Tensor shares its storage with the
// views (slices, reshapes) made from it; the last one releases it.
#pragma once

#include <initializer_list>
#include <memory>
#include <vector>

#include "core/tensor.h"

namespace ernie {

struct Tensor {
  std::shared_ptr<void> storage;
  TensorView view;

  bool is_contiguous() const;
  int64_t nbytes() const { return view.numel() * size_of(view.dtype); }
};

// Uninitialised, contiguous. Throws ArgumentError for a negative or overflowing shape.
Tensor empty(const std::vector<int64_t>& shape, DType dtype, const Stream& stream);

// The same in host memory that `device` copies by itself; for queue_copy. On the CPU as empty().
Tensor empty_pinned(const std::vector<int64_t>& shape, DType dtype, Device device);

// Queues the copy of `from` into `to` on `stream` and returns: both contiguous, of one dtype and
// shape, each on the stream's device or pinned. On the CPU it is done at once.
void queue_copy(const TensorView& to, const TensorView& from, const Stream& stream);

// A contiguous copy on `stream.device`.
Tensor copy_to(const Tensor& from, const Stream& stream);

// The same memory under another shape; the tensor must be contiguous. One extent may be -1.
Tensor reshape(const Tensor& from, std::vector<int64_t> shape);

// The same memory as elements of `dtype`, in one dimension; the tensor must be contiguous, aligned
// for them and filled by them.
Tensor view_as(const Tensor& from, DType dtype);

// Rows [begin, end) along `dim`, sharing memory.
Tensor narrow(const Tensor& from, int dim, int64_t begin, int64_t end);

}  // namespace ernie
