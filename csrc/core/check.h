// Argument checks for op front doors (ops/*.cpp). Kernels below never check again.
//
//   const Check check("rms_norm");
//   check.shape("weight", weight, {{"hidden_size", hidden_size}});
//
// throws ArgumentError
//   rms_norm: weight: expected shape [hidden_size=1024], got [1000]
#pragma once

#include <cstdlib>
#include <initializer_list>
#include <utility>

#include "core/tensor.h"

namespace ernie {

// One expected extent. The name is printed, so use the name the docs use.
struct Dim {
  const char* name;
  int64_t size;
};

class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  void rank(const char* name, const TensorView&, int expected) const;
  void shape(const char* name, const TensorView&, std::initializer_list<Dim> expected) const;
  void dtype(const char* name, const TensorView&, std::initializer_list<DType> allowed) const;
  void contiguous(const char* name, const TensorView&) const;
  void inner_contiguous(const char* name, const TensorView&) const;  // stride(-1) == 1

  // Every tensor of the call lives on `expected`.
  using Named = std::pair<const char*, const TensorView*>;
  void device(Device expected, std::initializer_list<Named> tensors) const;

  // A tensor that is written: not read-only, and no element of it is another one too.
  void writable(const char* name, const TensorView&) const;
  // `a` and `b` share no byte. `a` is written. Columns of the same rows are apart.
  void disjoint(const char* a_name, const TensorView& a, const char* b_name,
                const TensorView& b) const;
  // Or they are the very same rows: an op in place. A shifted overlap would read what it has
  // overwritten.
  void disjoint_or_same_rows(const char* a_name, const TensorView& a, const char* b_name,
                             const TensorView& b) const;

  // Throws "<op>: <name>: expected <expected>, got <got>". For conditions the above do not cover;
  // test first, so that a call with good arguments builds no string.
  [[noreturn]] void fail(const char* name, const std::string& expected,
                         const std::string& got) const;

 private:
  void is_tensor(const char* name, const TensorView&) const;

  const char* op_;
};

}  // namespace ernie
