// What the code being compiled may use. The host's pass sees everything.
#pragma once

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
#define ERNIE_PTX_SM89 1
#endif
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define ERNIE_PTX_SM90 1
#endif
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ERNIE_PTX_SM90A 1
#endif
