// Strict reader of the safetensors format: 8 bytes little-endian header length, a JSON object
// {name: {"dtype", "shape", "data_offsets"}, "__metadata__": {string: string}}, then the data.
//
// Everything is validated by the only constructors, before any tensor byte is read; an object that
// exists is sound. All complaints are FormatError and name file, tensor and byte offset. Stricter
// than the format's own library: duplicate keys, unknown fields and control characters are refused.
// Memory: the header text (names are views into it) and a fixed-size record per tensor.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/file.h"

namespace ernie::io {

struct SafetensorsLimits {
  // The format caps a header at 100,000,000 bytes; a larger limit here is lowered to that.
  uint64_t max_header_bytes = uint64_t{32} << 20;
  uint64_t max_tensors = 200'000;
  uint64_t max_name_bytes = 512;
};

struct SafetensorsDType {
  std::string_view name;  // as in the file: "F32", "BF16", ...
  uint32_t bits;          // per element; 4 and 6 exist
};

struct SafetensorsEntry {
  static constexpr int kMaxRank = 8;

  std::string_view name;
  const SafetensorsDType* dtype = nullptr;  // points into a constant table
  int32_t rank = 0;
  std::array<int64_t, kMaxRank> shape = {};
  uint64_t begin = 0, end = 0;  // bytes from the start of the data

  uint64_t nbytes() const { return end - begin; }
};

class SafetensorsHeader {
 public:
  // `text`: the JSON; `data_bytes`: size of the data that follows it in `file` (named in messages).
  SafetensorsHeader(std::vector<char> text, uint64_t data_bytes, std::string_view file,
                    const SafetensorsLimits& limits = {});
  SafetensorsHeader(SafetensorsHeader&&) = default;  // moving a vector leaves the views valid
  SafetensorsHeader(const SafetensorsHeader&) = delete;

  // The header length that the first bytes of a file of `file_bytes` announce, checked against
  // both.
  static uint64_t length(std::span<const unsigned char> first_bytes, uint64_t file_bytes,
                         std::string_view file, const SafetensorsLimits& limits = {});

  // Sorted by name.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  // Sorted by key.
  const std::deque<std::pair<std::string_view, std::string_view>>& metadata() const {
    return metadata_;
  }
  // Null when there is no such tensor.
  const SafetensorsEntry* find(std::string_view name) const;

 private:
  std::vector<char> text_;
  std::vector<SafetensorsEntry> entries_;
  // A deque: doubling a vector of small records could cost more than 8 times the header.
  std::deque<std::pair<std::string_view, std::string_view>> metadata_;
};

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path, const SafetensorsLimits& limits = {});

  const std::string& name() const { return file_.name(); }
  uint64_t size() const { return file_.size(); }
  const SafetensorsHeader& header() const { return header_; }

  // Copies `nbytes` of a tensor's stored bytes, from byte `offset` of the tensor on.
  // Throws FormatError as File::read does. Safe to call from several threads.
  void read(const SafetensorsEntry& entry, void* destination, uint64_t offset,
            uint64_t nbytes) const;

 private:
  static SafetensorsHeader read_header(const File& file, const SafetensorsLimits& limits,
                                       uint64_t& data_offset);

  File file_;
  uint64_t data_offset_ = 0;
  SafetensorsHeader header_;
};

}  // namespace ernie::io
