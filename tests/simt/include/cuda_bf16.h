// The kernels keep bfloat16 as 16 bits of their own (core/bf16.h): nothing of this header is used.
#pragma once

#include <cuda_runtime.h>
