// parallel_for: the only source of threads on the CPU backend.
//
//   parallel_for(rows, 8, [&](int64_t begin, int64_t end) { ... });
//
// calls the body on disjoint chunks that cover [0, count). Chunk bounds depend on count and grain
// alone, never on the number of threads, so results are the same at any thread count. An exception
// of the body reaches the caller once all chunks have ended. A nested call runs inline.
// On x86-64 the body runs in the default floating-point mode, whatever the caller's is.
#pragma once

#include <cstdint>

namespace ernie {

// A reference to any callable body(begin, end); it allocates nothing, unlike std::function.
class RangeBody {
 public:
  template <class F>
  RangeBody(const F& f)  // NOLINT: implicit on purpose, a lambda is the argument
      : object_(&f), call_([](const void* object, int64_t begin, int64_t end) {
          (*static_cast<const F*>(object))(begin, end);
        }) {}
  void operator()(int64_t begin, int64_t end) const { call_(object_, begin, end); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t, int64_t);
};

void parallel_for(int64_t count, int64_t grain, RangeBody body);

int num_threads();
void set_num_threads(int64_t n);  // 1 <= n <= 1024; takes effect at the next parallel_for

}  // namespace ernie
