// Reading a safetensors file while each call that can fail does so, once and in turn: open, fstat,
// pread and every allocation. Linked with --wrap, so that the reader's own calls arrive here.
// Whatever fails, the reader throws FormatError (or bad_alloc), leaks nothing (the sanitizer and
// the count of descriptors say so) and works again on the next call.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>
#include <string>

#include "core/error.h"
#include "io/safetensors.h"

namespace {

int calls_until_fault = -1;  // negative: never
bool injecting = false;      // the faults are for the reader, not for this program

bool fault_now() { return injecting && calls_until_fault >= 0 && calls_until_fault-- == 0; }

enum class ReadFault { kNone, kEio, kEnd, kInterrupted, kShort };
ReadFault read_fault = ReadFault::kNone;
bool fail_open = false, fail_stat = false, fail_new = false;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "file_faults: %s\n", what);
  std::exit(1);
}

}  // namespace

extern "C" {

int __real_open(const char*, int, ...);
int __real_fstat(int, struct stat*);
ssize_t __real_pread(int, void*, size_t, off_t);

int __wrap_open(const char* path, int flags, ...) {
  if (fail_open && fault_now()) return errno = EMFILE, -1;
  return __real_open(path, flags);
}

int __wrap_fstat(int descriptor, struct stat* status) {
  if (fail_stat && fault_now()) return errno = EIO, -1;
  return __real_fstat(descriptor, status);
}

ssize_t __wrap_pread(int descriptor, void* buffer, size_t size, off_t offset) {
  static bool interrupted = false;
  if (injecting && read_fault == ReadFault::kShort) size = std::min<size_t>(size, 3);
  if (injecting && read_fault == ReadFault::kInterrupted && (interrupted = !interrupted))
    return errno = EINTR, -1;
  if (read_fault == ReadFault::kEio && fault_now()) return errno = EIO, -1;
  if (read_fault == ReadFault::kEnd && fault_now()) return 0;
  return __real_pread(descriptor, buffer, size, offset);
}

}  // extern "C"

void* operator new(size_t size) {
  if (fail_new && fault_now()) throw std::bad_alloc();
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

std::string path;

enum class Outcome { kLoaded, kFormatError, kBadAlloc };

Outcome load(std::string* message) {
  char data[4] = {};
  injecting = true;
  Outcome outcome = Outcome::kLoaded;
  try {
    const ernie::io::SafetensorsFile file(path);
    file.read(*file.header().find("a"), data, 0, 4);
  } catch (const ernie::FormatError& error) {
    injecting = false;
    *message = error.what();
    outcome = Outcome::kFormatError;
  } catch (const std::bad_alloc&) {
    outcome = Outcome::kBadAlloc;
  }
  injecting = false;
  if (outcome == Outcome::kLoaded) expect(std::memcmp(data, "1234", 4) == 0, "wrong bytes");
  return outcome;
}

long descriptors() {
  const std::filesystem::directory_iterator open("/proc/self/fd");
  return std::distance(begin(open), end(open));
}

// Lets the first, second, ... call fail until a load gets through without meeting the fault.
void fail_each_call(const char* what, Outcome expected, const char* text) {
  const long before = descriptors();
  int faults = 0;
  for (;; ++faults) {
    std::string message;
    calls_until_fault = faults;
    const Outcome outcome = load(&message);
    if (calls_until_fault >= 0) break;  // the fault was not reached
    expect(outcome == expected, what);
    expect(message.find(text) != std::string::npos, message.c_str());
    calls_until_fault = -1;
    expect(load(&message) == Outcome::kLoaded, "the next load failed");
    expect(descriptors() == before, "a descriptor leaked");
  }
  expect(faults > 0, "the fault was never met");
  std::printf("%-28s %d calls failed in turn\n", what, faults);
}

}  // namespace

int main() {
  path = (std::filesystem::temp_directory_path() / "file_faults.XXXXXX").string();
  const int file = ::mkstemp(path.data());
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  const uint64_t length = header.size();
  std::string content(reinterpret_cast<const char*>(&length), 8);
  content += header + "1234";
  expect(file >= 0 &&
             ::write(file, content.data(), content.size()) == static_cast<ssize_t>(content.size()),
         "no temporary file");
  ::close(file);

  std::string message;
  for (const ReadFault harmless : {ReadFault::kNone, ReadFault::kShort, ReadFault::kInterrupted}) {
    read_fault = harmless;
    expect(load(&message) == Outcome::kLoaded, "partial or interrupted reads must be continued");
  }
  read_fault = ReadFault::kEio;
  fail_each_call("pread: EIO", Outcome::kFormatError, "failed: EIO");
  read_fault = ReadFault::kEnd;
  fail_each_call("pread: end of file", Outcome::kFormatError, "failed: unexpected end of file");
  read_fault = ReadFault::kNone;
  fail_open = true;
  fail_each_call("open: EMFILE", Outcome::kFormatError, "EMFILE; raise the limit on open files");
  fail_open = false, fail_stat = true;
  fail_each_call("fstat: EIO", Outcome::kFormatError, "cannot inspect: EIO");
  fail_stat = false, fail_new = true;
  fail_each_call("operator new", Outcome::kBadAlloc, "");
  fail_new = false;
  ::unlink(path.c_str());
}
