// PTX instructions: one inline function each, named after the instruction, and nothing else. The
// layouts and operands are those of the PTX ISA. tests/simt emulates these functions without a GPU,
// under the same names; its test_*instructions.py hold both to one definition.
//
// Functions that want sm_89 or sm_90a are declared there alone: kernels that call them are guarded
// likewise.
#pragma once

#include "cuda/ptx/architecture.cuh"
#include "cuda/ptx/arithmetic.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/wgmma.cuh"
