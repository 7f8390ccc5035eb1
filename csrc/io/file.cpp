#include "io/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/error.h"

namespace ernie::io {
namespace {

constexpr size_t kMaxQuoted = 128;
constexpr size_t kMaxMessage = 512;
// Linux moves at most 2^31 - 4096 bytes per call; a smaller step also keeps the loop interruptible.
constexpr uint64_t kMaxRead = uint64_t{1} << 30;

// The symbolic name: unlike strerror's text it does not depend on the locale.
std::string errno_name(int code) {
  switch (code) {
#define ERNIE_ERRNO(name) \
  case name:              \
    return #name;
    ERNIE_ERRNO(EACCES)
    ERNIE_ERRNO(EAGAIN)
    ERNIE_ERRNO(EBADF)
    ERNIE_ERRNO(EFAULT)
    ERNIE_ERRNO(EINVAL)
    ERNIE_ERRNO(EIO)
    ERNIE_ERRNO(EISDIR)
    ERNIE_ERRNO(ELOOP)
    ERNIE_ERRNO(EMFILE)
    ERNIE_ERRNO(ENAMETOOLONG)
    ERNIE_ERRNO(ENFILE)
    ERNIE_ERRNO(ENOENT)
    ERNIE_ERRNO(ENOMEM)
    ERNIE_ERRNO(ENOTDIR)
    ERNIE_ERRNO(ENXIO)
    ERNIE_ERRNO(EOVERFLOW)
    ERNIE_ERRNO(EPERM)
    ERNIE_ERRNO(ESTALE)
    ERNIE_ERRNO(ETIMEDOUT)
#undef ERNIE_ERRNO
    default:
      return "errno " + std::to_string(code);
  }
}

// Printable ASCII as it is, the rest as \xNN, at most kMaxQuoted characters. Appends to `out`.
std::string escaped(std::string_view text, std::string out = {}) {
  constexpr char kHex[] = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (out.size() > kMaxQuoted - 7) return out + "...";
    if (byte < 0x20 || byte > 0x7e) {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      if (c == '\\' || c == '\'') out += '\\';
      out += c;
    }
  }
  return out;
}

}  // namespace

std::string quoted(std::string_view text) { return escaped(text, "'") += '\''; }

void fail_format(std::string_view file, const std::string& text) {
  std::string message = escaped(file) + ": " + text;
  if (message.size() > kMaxMessage) message = message.substr(0, kMaxMessage - 3) + "...";
  throw FormatError(message);
}

File::File(const std::string& path) : name_(path.substr(path.find_last_of('/') + 1)) {
  if (path.find('\0') != std::string::npos) fail_format(name_, "the path has a NUL character");
  // O_NONBLOCK: opening a named pipe would otherwise wait for a writer. Regular files ignore it.
  do {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) {
    const int code = errno;
    fail_format(name_, "cannot open: " + errno_name(code) +
                           (code == EMFILE ? "; raise the limit on open files (ulimit -n)" : ""));
  }
  struct stat status;
  const bool known = ::fstat(descriptor_, &status) == 0;
  const int code = errno;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    fail_format(name_, known ? "not a regular file" : "cannot inspect: " + errno_name(code));
  }
  size_ = static_cast<uint64_t>(status.st_size);
  modified_seconds_ = status.st_mtim.tv_sec;
  modified_nanoseconds_ = status.st_mtim.tv_nsec;
}

File::~File() { ::close(descriptor_); }

void File::read(void* destination, uint64_t offset, uint64_t nbytes) const {
  if (offset > size_ || nbytes > size_ - offset)
    fail_format(name_, "cannot read " + std::to_string(nbytes) + " bytes at offset " +
                           std::to_string(offset) + ": the file has " + std::to_string(size_));
  auto* out = static_cast<char*>(destination);
  while (nbytes > 0) {
    const ssize_t got =
        ::pread(descriptor_, out, std::min(nbytes, kMaxRead), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      const int code = got < 0 ? errno : 0;
      check_unchanged();
      fail_format(name_, "reading at offset " + std::to_string(offset) + " failed: " +
                             (code ? errno_name(code) : std::string("unexpected end of file")));
    }
    out += got;
    offset += static_cast<uint64_t>(got);
    nbytes -= static_cast<uint64_t>(got);
  }
  check_unchanged();
}

void File::check_unchanged() const {
  struct stat status;
  if (::fstat(descriptor_, &status) != 0)
    fail_format(name_, "cannot inspect: " + errno_name(errno));
  if (static_cast<uint64_t>(status.st_size) != size_ ||
      status.st_mtim.tv_sec != modified_seconds_ || status.st_mtim.tv_nsec != modified_nanoseconds_)
    fail_format(name_, "changed while reading (it had " + std::to_string(size_) +
                           " bytes when opened, now " + std::to_string(status.st_size) +
                           "); load again when nothing writes to it");
}

}  // namespace ernie::io
