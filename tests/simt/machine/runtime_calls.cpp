#include "machine/runtime_calls.h"

#include <mutex>
#include <utility>
#include <vector>

namespace simt {
namespace {

std::mutex g_mutex;
std::vector<std::string> g_calls;

struct Wish {
  std::string name;
  int64_t nth = 0;  // 0: none
  cudaError_t error = cudaSuccess;
  bool from_then_on = false, has_come = false;
};
Wish g_wish;

thread_local cudaError_t g_last_error = cudaSuccess;
thread_local std::pair<cudaError_t, std::string> g_fault;

cudaError_t injected(const char* name) {
  if (g_wish.nth == 0 || (!g_wish.name.empty() && g_wish.name != name)) return cudaSuccess;
  if (g_wish.nth > 1) {
    --g_wish.nth;
    return cudaSuccess;
  }
  if (!g_wish.from_then_on) g_wish.nth = 0;
  g_wish.has_come = true;
  return g_wish.error;
}

}  // namespace

int& current_device() {
  thread_local int device = 0;
  return device;
}

cudaError_t enter_call(const char* name, const void* stream, const std::string& arguments) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  const cudaError_t error = injected(name);
  g_calls.push_back(std::string("{\"name\": \"") + name +
                    "\", \"stream\": " + std::to_string(reinterpret_cast<uintptr_t>(stream)) +
                    ", \"device\": " + std::to_string(current_device()) + ", \"error\": " +
                    std::to_string(error) + (arguments.empty() ? "" : ", " + arguments) + "}");
  // Long sessions look at few of their calls.
  constexpr size_t kMostCalls = 100'000;
  if (g_calls.size() > kMostCalls) g_calls.erase(g_calls.begin(), g_calls.begin() + kMostCalls / 2);
  return error;
}

std::string calls_text() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  std::string text;
  for (const std::string& call : g_calls) text += call + "\n";
  return text;
}

void clear_calls() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_calls.clear();
}

void fail_call(const std::string& name, int64_t nth, cudaError_t error, bool from_then_on) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_wish = {name, nth, error, from_then_on, false};
}

void fail_no_call() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_wish = {};
}

bool call_has_failed() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  return g_wish.has_come;
}

void set_last_error(cudaError_t error, const std::string& text) {
  g_last_error = error;
  g_fault = {error, text};
}
cudaError_t take_last_error() { return std::exchange(g_last_error, cudaSuccess); }
cudaError_t peek_last_error() { return g_last_error; }

const std::string& fault_text_of(cudaError_t error) {
  static const std::string none;
  return g_fault.first == error ? g_fault.second : none;
}

}  // namespace simt
