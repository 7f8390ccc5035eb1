// Stands in for csrc/cuda/ptx.cuh, which the include path finds only after this one: the same
// functions, each doing what the PTX ISA says the instruction does (machine/ptx_*.cpp).
//
// Operands and results go by value: the address of a kernel's registers would make the compiler
// keep them in memory, and instrument every use. wgmma alone keeps addresses, to deliver late.
#pragma once

#include "cuda/ptx/architecture.cuh"
#include "cuda/ptx/arithmetic.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/copy.cuh"
#include "cuda/ptx/matrix.cuh"
#include "cuda/ptx/wgmma.cuh"
