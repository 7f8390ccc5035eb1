// Marks functions that the CPU and the CUDA backend share: bit-level logic is written once.
#pragma once

#if defined(__CUDACC__)
#define ERNIE_HOST_DEVICE __host__ __device__
#else
#define ERNIE_HOST_DEVICE
#endif
