// A cursor over JSON text for readers that know what must come next. It never builds a value and
// never recurses: a nested value where none belongs is refused at its first byte, so depth needs no
// limit of its own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ernie::io {

// Offset of the first byte that is not part of well-formed UTF-8 (RFC 3629), or text.size().
size_t find_invalid_utf8(std::string_view text);

class JsonCursor {
 public:
  // [begin, end) must be valid UTF-8 and outlive the strings handed out; escapes are decoded in
  // place.
  JsonCursor(char* begin, char* end, std::string_view file)
      : begin_(begin), at_(begin), end_(end), file_(file) {}

  // Skips white space, then takes `c` or throws "expected <what>".
  void expect(char c, const char* what);
  // Skips white space; takes `c` if it comes next.
  bool consume(char c);
  // Throws unless only white space is left.
  void expect_end();

  // A string, escapes decoded; a view into the text.
  std::string_view string(const char* what);
  // The text of a number as it stands ("12", "-1.5e3"): the caller decides what range it takes.
  std::string_view number(const char* what);

  [[noreturn]] void fail(const std::string& text) const;

 private:
  void skip_space();
  uint32_t hex4();
  char* decode_escape(char* out);

  char* begin_;
  char* at_;
  char* end_;
  std::string_view file_;
};

}  // namespace ernie::io
