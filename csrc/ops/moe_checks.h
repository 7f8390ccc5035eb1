// What the front doors of the expert layers' ops ask alike of their arguments: moe.cpp and
// fused_moe.cpp.
#pragma once

#include <optional>

#include "core/check.h"

namespace ernie {

// That what is written lies apart from everything else of the call.
inline void check_written(const Check& check, Check::Named written,
                          std::initializer_list<Check::Named> others) {
  check.writable(written.first, *written.second);
  for (const auto& [name, t] : others)
    if (t != nullptr && t != written.second)
      check.disjoint(written.first, *written.second, name, *t);
}

inline const TensorView* pointer_to(const std::optional<TensorView>& t) {
  return t ? &*t : nullptr;
}

}  // namespace ernie
