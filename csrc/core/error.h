// The errors this library throws. bindings/module.cpp maps each to the Python class of its name, or
// of its base's.
#pragma once

#include <stdexcept>
#include <string>

namespace ernie {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ArgumentError : Error {  // a shape, dtype, device, layout or range is wrong
  using Error::Error;
};
struct TypeError : Error {  // not a tensor at all
  using Error::Error;
};
struct UnsupportedError : Error {  // right arguments, but no kernel for them
  using Error::Error;
};
struct FormatError : Error {  // a file is not what its format says
  using Error::Error;
};
struct DeviceError : Error {  // no such GPU, or none that this build has code for
  using Error::Error;
};
struct CudaError : DeviceError {  // the CUDA runtime reported a failure
  using DeviceError::DeviceError;
};
struct OutOfMemoryError : Error {
  using Error::Error;
};

}  // namespace ernie
