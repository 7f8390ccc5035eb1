// A regular file opened for reading: positioned reads that either deliver every byte or throw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ernie::io {

// Text of unknown origin as it may appear in a message: quoted, everything but printable ASCII
// escaped, cut at 128 characters.
std::string quoted(std::string_view text);

// Throws FormatError "<file>: <text>", at most 512 bytes. `file` is a base name; it is escaped
// here.
[[noreturn]] void fail_format(std::string_view file, const std::string& text);

class File {
 public:
  // Follows symbolic links (a model hub's cache stores weights behind them). Throws FormatError
  // when the path cannot be opened or is no regular file; never blocks on a named pipe.
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& name() const { return name_; }  // base name of the path
  uint64_t size() const { return size_; }

  // Reads exactly `nbytes` at `offset`. Interrupted and partial reads are continued. Throws
  // FormatError with offset and errno name, or when size or modification time are no longer those
  // seen by the constructor: bytes of two versions of a file must not meet in one model.
  void read(void* destination, uint64_t offset, uint64_t nbytes) const;

 private:
  void check_unchanged() const;

  std::string name_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
  int64_t modified_seconds_ = 0, modified_nanoseconds_ = 0;
};

}  // namespace ernie::io
