// Turns a failed CUTLASS call into CudaError.
#pragma once

#include <cutlass/cutlass.h>

#include <string>

#include "core/error.h"

namespace ernie::cuda {

inline void check_cutlass(cutlass::Status status) {
  if (status == cutlass::Status::kSuccess) return;
  throw CudaError(std::string("the matrix product could not be launched: ") +
                  cutlass::cutlassGetStatusString(status));
}

}  // namespace ernie::cuda
