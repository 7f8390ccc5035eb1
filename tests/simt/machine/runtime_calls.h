// Every call of the CUDA runtime's stand-in passes here: it is recorded, and may be made to fail.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt {

// GPUs that the machine says it has, 1 at first. They share one memory.
void set_device_count(int count);

// Live ones of cudaHostAlloc.
size_t pinned_allocations();

// Of the calling thread.
int& current_device();

// The error that the call must report instead of doing anything, or cudaSuccess. `arguments` is the
// inside of a JSON object, such as "\"bytes\": 4".
cudaError_t enter_call(const char* name, const void* stream, const std::string& arguments = "");

// The calls since the last clear_calls, one JSON object a line:
// {"name": "cudaMallocAsync", "stream": 0, "device": 0, "error": 0, "bytes": 4}
std::string calls_text();
void clear_calls();

// Makes the nth call from now on (1: the next), of those named `name` (empty: of all), report
// `error`; with `from_then_on` all later ones too. Replaces what was asked before.
void fail_call(const std::string& name, int64_t nth, cudaError_t error, bool from_then_on);
void fail_no_call();
bool call_has_failed();  // whether what fail_call asked for has come

// What cudaGetLastError will report, and the machine's words for it.
void set_last_error(cudaError_t error, const std::string& text = "");
cudaError_t take_last_error();
cudaError_t peek_last_error();
const std::string& fault_text_of(cudaError_t error);

}  // namespace simt
