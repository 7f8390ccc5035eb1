#include "io/safetensors.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <numeric>

#include "io/json_cursor.h"

namespace ernie::io {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kFormatMaxHeader = 100'000'000;
// '"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},' : no tensor takes less header than this.
constexpr size_t kMinEntryText = 50;

constexpr SafetensorsDType kDTypes[] = {
    {"BOOL", 8},    {"U8", 8},      {"I8", 8},          {"U16", 16},        {"I16", 16},
    {"U32", 32},    {"I32", 32},    {"U64", 64},        {"I64", 64},        {"F16", 16},
    {"BF16", 16},   {"F32", 32},    {"F64", 64},        {"C64", 64},        {"F8_E4M3", 8},
    {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6},
    {"F6_E3M2", 6}, {"F4", 4}};

std::string supported_dtypes() {
  std::string list;
  for (const auto& dtype : kDTypes) (list += list.empty() ? "" : " ") += dtype.name;
  return list;
}

std::string describe(const SafetensorsEntry& entry) { return "tensor " + quoted(entry.name); }

std::string range_of(const SafetensorsEntry& entry) {
  std::string text = "[";
  text += std::to_string(entry.begin);
  text += ", ";
  text += std::to_string(entry.end);
  return text += ")";
}

std::string shape_of(const SafetensorsEntry& entry) {
  std::string text = "[";
  for (int i = 0; i < entry.rank; ++i) {
    if (i) text += ", ";
    text += std::to_string(entry.shape[static_cast<size_t>(i)]);
  }
  return text += "]";
}

// The JSON of one header, read into a table of entries. Throws at the first thing wrong.
class HeaderParser {
 public:
  HeaderParser(std::vector<char>& text, std::string_view file, const SafetensorsLimits& limits)
      : json_(text.data(), text.data() + text.size(), file), limits_(limits) {}

  void parse(std::vector<SafetensorsEntry>& entries,
             std::deque<std::pair<std::string_view, std::string_view>>& metadata) {
    bool has_metadata = false;
    members([&](std::string_view name) {
      if (name == "__metadata__") {
        if (has_metadata) json_.fail("duplicate field '__metadata__'");
        has_metadata = true;
        members([&](std::string_view key) {
          metadata.emplace_back(key, json_.string("a string as metadata value"));
        });
        return;
      }
      if (entries.size() >= limits_.max_tensors)
        json_.fail("more tensors than the limit of " + std::to_string(limits_.max_tensors));
      check_name(name);
      entries.push_back(parse_entry(name));
    });
    json_.expect_end();
  }

 private:
  // Reads an object; `member(key)` reads the value of each key.
  template <class Member>
  void members(const Member& member) {
    json_.expect('{', "'{'");
    if (json_.consume('}')) return;
    do {
      const std::string_view key = json_.string("a key in quotes");
      json_.expect(':', "':'");
      member(key);
    } while (json_.consume(','));
    json_.expect('}', "',' or '}'");
  }

  // Reads a list; `item(index)` reads each item. Returns how many there were.
  template <class Item>
  int items(const Item& item) {
    json_.expect('[', "'['");
    if (json_.consume(']')) return 0;
    int count = 0;
    do item(count++);
    while (json_.consume(','));
    json_.expect(']', "',' or ']'");
    return count;
  }

  void check_name(std::string_view name) const {
    if (name.size() > limits_.max_name_bytes)
      json_.fail("tensor name " + quoted(name) + " has " + std::to_string(name.size()) +
                 " bytes, the limit is " + std::to_string(limits_.max_name_bytes));
    for (size_t i = 0; i < name.size(); ++i) {
      const auto byte = static_cast<unsigned char>(name[i]);
      const bool c1 = byte == 0xc2 && static_cast<unsigned char>(name[i + 1]) < 0xa0;
      if (byte < 0x20 || byte == 0x7f || c1)
        json_.fail("tensor name " + quoted(name) + " has a control character");
    }
    if (name.find("..") != std::string_view::npos)
      json_.fail("tensor name " + quoted(name) + " has '..'");
  }

  SafetensorsEntry parse_entry(std::string_view name) {
    SafetensorsEntry entry;
    entry.name = name;
    bool has_dtype = false, has_shape = false, has_offsets = false;
    const auto once = [&](bool& seen, std::string_view field) {
      if (seen) json_.fail(describe(entry) + ": duplicate field " + quoted(field));
      seen = true;
    };
    members([&](std::string_view field) {
      if (field == "dtype") {
        once(has_dtype, field);
        entry.dtype = parse_dtype(entry);
      } else if (field == "shape") {
        once(has_shape, field);
        parse_shape(entry);
      } else if (field == "data_offsets") {
        once(has_offsets, field);
        parse_offsets(entry);
      } else {
        json_.fail(describe(entry) + ": unknown field " + quoted(field));
      }
    });
    if (!has_dtype || !has_shape || !has_offsets)
      json_.fail(describe(entry) + ": missing field '" +
                 (!has_dtype   ? "dtype"
                  : !has_shape ? "shape"
                               : "data_offsets") +
                 "'");
    return entry;
  }

  const SafetensorsDType* parse_dtype(const SafetensorsEntry& entry) {
    const std::string_view name = json_.string("a string as dtype");
    for (const auto& dtype : kDTypes)
      if (dtype.name == name) return &dtype;
    json_.fail(describe(entry) + ": unknown dtype " + quoted(name.substr(0, 24)) + ", expected " +
               supported_dtypes());
  }

  void parse_shape(SafetensorsEntry& entry) {
    entry.rank = items([&](int i) {
      if (i == SafetensorsEntry::kMaxRank)
        json_.fail(describe(entry) + ": shape has more than " +
                   std::to_string(SafetensorsEntry::kMaxRank) + " dimensions");
      entry.shape[static_cast<size_t>(i)] = integer(entry, "shape", i);
    });
  }

  void parse_offsets(SafetensorsEntry& entry) {
    const int count = items([&](int i) {
      const int64_t value = integer(entry, "data_offsets", i);
      if (i < 2) (i == 0 ? entry.begin : entry.end) = static_cast<uint64_t>(value);
      if (i == 2) json_.fail(describe(entry) + ": data_offsets: expected 2 numbers, got more");
    });
    if (count != 2)
      json_.fail(describe(entry) + ": data_offsets: expected 2 numbers, got " +
                 std::to_string(count));
  }

  int64_t integer(const SafetensorsEntry& entry, const char* field, int position) {
    const std::string_view token = json_.number("a number");
    int64_t value = 0;
    const auto [stop, error] = std::from_chars(token.data(), token.data() + token.size(), value);
    if (error != std::errc{} || stop != token.data() + token.size() || token.front() == '-')
      json_.fail(describe(entry) + ": " + field + "[" + std::to_string(position) +
                 "]: expected an integer from 0 to " +
                 std::to_string(std::numeric_limits<int64_t>::max()) + ", got " +
                 quoted(token.substr(0, 32)));
    return value;
  }

  JsonCursor json_;
  const SafetensorsLimits& limits_;
};

// The bytes that shape and dtype take; every product is checked.
uint64_t expected_bytes(const SafetensorsEntry& entry, std::string_view file) {
  uint64_t bits = entry.dtype->bits;
  bool overflow = false;
  for (int i = 0; i < entry.rank; ++i)
    overflow |= __builtin_mul_overflow(
        bits, static_cast<uint64_t>(entry.shape[static_cast<size_t>(i)]), &bits);
  const std::string_view dtype = entry.dtype->name;
  if (overflow)
    fail_format(file, describe(entry) + ": shape " + shape_of(entry) + " of " + std::string(dtype) +
                          " overflows 64 bits");
  if (bits % 8 != 0)
    fail_format(file, describe(entry) + ": shape " + shape_of(entry) + " of " + std::string(dtype) +
                          " is " + std::to_string(bits) + " bits, not whole bytes");
  return bits / 8;
}

// The ranges must tile the data from its first to its last byte, so that nothing is read twice and
// nothing hides between tensors.
void check_ranges(const std::vector<SafetensorsEntry>& entries, uint64_t data_bytes,
                  std::string_view file) {
  for (const auto& entry : entries) {
    if (entry.begin > entry.end || entry.end > data_bytes)
      fail_format(file, describe(entry) + ": data_offsets " + range_of(entry) +
                            (entry.begin > entry.end ? ": begin is behind end" : ": beyond data") +
                            " (the file has " + std::to_string(data_bytes) + " bytes of data)");
    const uint64_t expected = expected_bytes(entry, file);
    if (entry.nbytes() != expected)
      fail_format(file, describe(entry) + ": data_offsets " + range_of(entry) + " hold " +
                            std::to_string(entry.nbytes()) + " bytes, expected " +
                            std::to_string(expected) + " for shape " + shape_of(entry) + " of " +
                            std::string(entry.dtype->name));
  }
  std::vector<uint32_t> order(entries.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return std::pair(entries[a].begin, entries[a].end) <
           std::pair(entries[b].begin, entries[b].end);
  });
  uint64_t covered = 0;
  const SafetensorsEntry* previous = nullptr;
  for (const uint32_t i : order) {
    const auto& entry = entries[i];
    if (entry.begin != covered)
      fail_format(file, describe(entry) + " " + range_of(entry) +
                            (entry.begin < covered ? " overlaps " : " leaves a gap after ") +
                            (previous ? describe(*previous) + " " + range_of(*previous)
                                      : std::string("the start of the data")));
    covered = entry.end;
    previous = &entry;
  }
  if (covered != data_bytes)
    fail_format(file, std::to_string(data_bytes - covered) + " bytes after the last tensor");
}

}  // namespace

uint64_t SafetensorsHeader::length(std::span<const unsigned char> first_bytes, uint64_t file_bytes,
                                   std::string_view file, const SafetensorsLimits& limits) {
  if (file_bytes < kLengthBytes || first_bytes.size() < kLengthBytes)
    fail_format(file, "has " + std::to_string(file_bytes) +
                          " bytes, a safetensors file needs at least 8 bytes; fetch it again");
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) length |= uint64_t{first_bytes[i]} << (8 * i);
  const uint64_t limit = std::min(limits.max_header_bytes, kFormatMaxHeader);
  if (length > limit)
    fail_format(file, "claims a header of " + std::to_string(length) + " bytes, the limit is " +
                          std::to_string(limit) + "; is this a safetensors file?");
  if (length > file_bytes - kLengthBytes)
    fail_format(file, "claims a header of " + std::to_string(length) + " bytes, only " +
                          std::to_string(file_bytes - kLengthBytes) +
                          " are available; the file is cut off, fetch it again");
  return length;
}

SafetensorsHeader::SafetensorsHeader(std::vector<char> text, uint64_t data_bytes,
                                     std::string_view file, const SafetensorsLimits& limits)
    : text_(std::move(text)) {
  if (text_.empty() || text_.front() != '{')
    fail_format(file, "header: byte 0: bad JSON: expected '{', got " +
                          (text_.empty() ? "an empty header" : quoted({text_.data(), 1})));
  const size_t invalid = find_invalid_utf8({text_.data(), text_.size()});
  if (invalid != text_.size())
    fail_format(file, "header: byte " + std::to_string(invalid) + ": not valid UTF-8");

  entries_.reserve(std::min<uint64_t>(text_.size() / kMinEntryText, limits.max_tensors));
  HeaderParser(text_, file, limits).parse(entries_, metadata_);

  std::sort(metadata_.begin(), metadata_.end());
  const auto same_key = [](const auto& a, const auto& b) { return a.first == b.first; };
  const auto key = std::adjacent_find(metadata_.begin(), metadata_.end(), same_key);
  if (key != metadata_.end())
    fail_format(file, "__metadata__: duplicate field " + quoted(key->first));

  std::sort(entries_.begin(), entries_.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  const auto same_name = [](const auto& a, const auto& b) { return a.name == b.name; };
  const auto twice = std::adjacent_find(entries_.begin(), entries_.end(), same_name);
  if (twice != entries_.end()) fail_format(file, "duplicate " + describe(*twice));

  check_ranges(entries_, data_bytes, file);
}

const SafetensorsEntry* SafetensorsHeader::find(std::string_view name) const {
  const auto at =
      std::lower_bound(entries_.begin(), entries_.end(), name,
                       [](const SafetensorsEntry& e, std::string_view n) { return e.name < n; });
  return at != entries_.end() && at->name == name ? &*at : nullptr;
}

SafetensorsHeader SafetensorsFile::read_header(const File& file, const SafetensorsLimits& limits,
                                               uint64_t& data_offset) {
  std::array<unsigned char, kLengthBytes> first = {};
  const uint64_t present = std::min<uint64_t>(file.size(), kLengthBytes);
  file.read(first.data(), 0, present);
  const uint64_t length =
      SafetensorsHeader::length({first.data(), present}, file.size(), file.name(), limits);
  std::vector<char> text(length);  // no more than the file holds
  file.read(text.data(), kLengthBytes, length);
  data_offset = kLengthBytes + length;
  return SafetensorsHeader(std::move(text), file.size() - data_offset, file.name(), limits);
}

SafetensorsFile::SafetensorsFile(const std::string& path, const SafetensorsLimits& limits)
    : file_(path), header_(read_header(file_, limits, data_offset_)) {}

void SafetensorsFile::read(const SafetensorsEntry& entry, void* destination, uint64_t offset,
                           uint64_t nbytes) const {
  if (offset > entry.nbytes() || nbytes > entry.nbytes() - offset)
    fail_format(file_.name(), describe(entry) + ": cannot read " + std::to_string(nbytes) +
                                  " bytes at " + std::to_string(offset) + " of " +
                                  std::to_string(entry.nbytes()));
  file_.read(destination, data_offset_ + entry.begin + offset, nbytes);
}

}  // namespace ernie::io
