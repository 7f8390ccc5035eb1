// Lets a bound function take TensorView: pybind11 turns our Tensor, a numpy array or any DLPack
// object (torch, CuPy, JAX) into one, without copying and without linking any of them. The view is
// valid for the call only. What is no tensor at all becomes a view that says so, and the op's own
// checks report it with the argument's name.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <optional>
#include <span>
#include <type_traits>
#include <vector>

#include "core/error.h"
#include "core/tensor.h"

namespace ernie::bindings {

// `keep_alive` receives whatever must outlive the view.
TensorView view_of(pybind11::handle src, pybind11::object* keep_alive);

// The tensors of a call; null ones are skipped.
using Arguments = std::span<const TensorView* const>;

// The stream a call runs on: that of its first CUDA argument, or the one that captures it.
Stream stream_of(Arguments arguments);
inline Stream stream_of(std::initializer_list<const TensorView*> arguments) {
  return stream_of(Arguments(arguments.begin(), arguments.size()));
}

// Where arguments of two libraries meet, a call and the other streams of its device wait for each
// other: it for what it reads, they before they read what it writes or give away what it reads. A
// stream that is being captured waits for nothing outside of its graph, nor can it be waited for:
// there all arguments must be ready.
class StreamOrder {
 public:
  // The call waits for the others. Throws CudaError.
  StreamOrder(const Stream& stream, Arguments arguments);
  // The others wait for the call. Throws CudaError.
  void let_others_wait() const;

 private:
  Stream stream_;
  std::vector<void*> others_;
};

// Calls an op without the GIL, on the stream of its arguments.
template <class Args>
void run(void (*op)(const Args&, const Stream&), const std::type_identity_t<Args>& args,
         Arguments arguments) {
  const Stream stream = stream_of(arguments);
  const StreamOrder order(stream, arguments);
  pybind11::gil_scoped_release release;
  try {
    op(args, stream);
  } catch (...) {  // of an op of two launches the first may run
    try {
      order.let_others_wait();
    } catch (const Error&) {  // the first error is the one to tell
    }
    throw;
  }
  order.let_others_wait();
}
template <class Args>
void run(void (*op)(const Args&, const Stream&), const std::type_identity_t<Args>& args,
         std::initializer_list<const TensorView*> arguments) {
  run(op, args, Arguments(arguments.begin(), arguments.size()));
}

inline const TensorView* pointer_to(const std::optional<TensorView>& t) {
  return t ? &*t : nullptr;
}

}  // namespace ernie::bindings

namespace pybind11::detail {

template <>
struct type_caster<ernie::TensorView> {
  PYBIND11_TYPE_CASTER(ernie::TensorView, const_name("Tensor"));

  bool load(handle src, bool) {
    value = ernie::bindings::view_of(src, &keep_alive_);
    return true;
  }

 private:
  object keep_alive_;
};

// The general caster of optionals drops the one within, and what the view needs with it, before the
// call.
template <>
struct type_caster<std::optional<ernie::TensorView>> {
  PYBIND11_TYPE_CASTER(std::optional<ernie::TensorView>, const_name("Tensor | None"));

  bool load(handle src, bool) {
    if (!src.is_none()) value = ernie::bindings::view_of(src, &keep_alive_);
    return true;
  }

 private:
  object keep_alive_;
};

}  // namespace pybind11::detail
