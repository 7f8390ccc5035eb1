// A kernel that a test runs by name: one block, words in, words out. On the SIMT machine, or, as
// compiled by nvcc, on a GPU (tests/simt/instructions.py).
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "cuda/common.cuh"

namespace probes {

using Kernel = void (*)(const uint32_t* in, uint32_t* out);

constexpr int kSm90a = 901;  // which later architectures do not include

struct Probe {
  const char* name;
  Kernel kernel;
  unsigned threads;
  int architecture = 80;  // the least that its code must have been compiled for
  size_t dynamic_shared = 0;
};

struct Words {
  uint32_t* data;
  size_t count;
};

inline cudaError_t launch_and_copy(const Probe& probe, Words in, Words out, uint32_t* device) {
  cudaError_t error = cudaMemcpy(device, in.data, 4 * in.count, cudaMemcpyHostToDevice);
  if (error != cudaSuccess) return error;
  // What a kernel leaves out stays as the caller has it.
  error = cudaMemcpy(device + in.count, out.data, 4 * out.count, cudaMemcpyHostToDevice);
  if (error != cudaSuccess) return error;
  const uint32_t* from = device;
  uint32_t* to = device + in.count;
#if defined(ERNIE_SIMT)
  simt::launch(probe.kernel, dim3(1), dim3(probe.threads), probe.dynamic_shared, nullptr, from, to);
#else
  void* arguments[] = {&from, &to};
  cudaLaunchKernel(reinterpret_cast<const void*>(probe.kernel), dim3(1), dim3(probe.threads),
                   arguments, probe.dynamic_shared, nullptr);
#endif
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  error = cudaDeviceSynchronize();
  if (error != cudaSuccess) return error;
  return cudaMemcpy(out.data, device + in.count, 4 * out.count, cudaMemcpyDeviceToHost);
}

inline cudaError_t run(const Probe& probe, Words in, Words out) {
  uint32_t* device = nullptr;
  const cudaError_t error =
      cudaMalloc(reinterpret_cast<void**>(&device), 4 * (in.count + out.count));
  if (error != cudaSuccess) return error;
  const cudaError_t result = launch_and_copy(probe, in, out, device);
  cudaFree(device);
  return result;
}

// Null where no probe has the name.
inline const Probe* find(std::span<const Probe> all, const char* name) {
  for (const Probe& probe : all)
    if (std::strcmp(probe.name, name) == 0) return &probe;
  return nullptr;
}

}  // namespace probes
