#include "io/json_cursor.h"

#include "io/file.h"

namespace ernie::io {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  const auto* s = reinterpret_cast<const unsigned char*>(text.data());
  const size_t n = text.size();
  for (size_t i = 0; i < n;) {
    const unsigned char lead = s[i];
    if (lead < 0x80) {
      ++i;
      continue;
    }
    // The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF.
    size_t length = 0;
    unsigned char low = 0x80, high = 0xbf;
    if (lead >= 0xc2 && lead <= 0xdf) {
      length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
      length = 3;
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
      length = 4;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    }
    if (length == 0 || n - i < length || s[i + 1] < low || s[i + 1] > high) return i;
    for (size_t j = 2; j < length; ++j)
      if (s[i + j] < 0x80 || s[i + j] > 0xbf) return i;
    i += length;
  }
  return n;
}

void JsonCursor::fail(const std::string& text) const {
  fail_format(file_, "header: byte " + std::to_string(at_ - begin_) + ": " + text);
}

void JsonCursor::skip_space() {
  while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
}

bool JsonCursor::consume(char c) {
  skip_space();
  if (at_ == end_ || *at_ != c) return false;
  ++at_;
  return true;
}

void JsonCursor::expect(char c, const char* what) {
  if (consume(c)) return;
  fail(std::string("bad JSON: expected ") + what + ", got " +
       (at_ == end_ ? "the end of the header" : quoted({at_, 1})));
}

void JsonCursor::expect_end() {
  skip_space();
  if (at_ != end_) fail("bad JSON: text after the closing brace");
}

std::string_view JsonCursor::string(const char* what) {
  expect('"', what);
  char* const start = at_;
  char* out = at_;
  for (;;) {
    if (at_ == end_) fail("bad JSON: string without end");
    const char c = *at_;
    if (c == '"') break;
    if (static_cast<unsigned char>(c) < 0x20) fail("bad JSON: control character in a string");
    if (c == '\\') {
      out = decode_escape(out);
    } else {
      *out++ = c;
      ++at_;
    }
  }
  ++at_;
  return {start, static_cast<size_t>(out - start)};
}

// Decodes the escape at the cursor to `out`; the result is never longer than the escape.
char* JsonCursor::decode_escape(char* out) {
  if (end_ - at_ < 2) fail("bad JSON: string without end");
  const char kind = at_[1];
  const auto put = [&](uint32_t byte) { *out++ = static_cast<char>(byte); };
  if (kind != 'u') {
    constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
    const size_t index = kNames.find(kind);
    if (index == std::string_view::npos) fail("bad JSON: unknown escape in a string");
    at_ += 2;
    put(static_cast<unsigned char>(kValues[index]));
    return out;
  }
  uint32_t code = hex4();
  if (code >= 0xd800 && code <= 0xdfff) {
    const bool pair = code < 0xdc00 && end_ - at_ >= 6 && at_[0] == '\\' && at_[1] == 'u';
    const uint32_t low = pair ? hex4() : 0;
    if (low < 0xdc00 || low > 0xdfff) fail("bad JSON: half of a surrogate pair in a string");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6), put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
  }
  return out;
}

// The four digits of the \uXXXX at the cursor, which moves behind them.
uint32_t JsonCursor::hex4() {
  if (end_ - at_ < 6) fail("bad JSON: string without end");
  uint32_t value = 0;
  for (int i = 2; i < 6; ++i) {
    const char c = at_[i];
    const char lower = static_cast<char>(c | 0x20);
    if (is_digit(c))
      value = value * 16 + static_cast<uint32_t>(c - '0');
    else if (lower >= 'a' && lower <= 'f')
      value = value * 16 + static_cast<uint32_t>(lower - 'a' + 10);
    else
      fail("bad JSON: \\u needs four hexadecimal digits");
  }
  at_ += 6;
  return value;
}

std::string_view JsonCursor::number(const char* what) {
  skip_space();
  char* p = at_;
  const auto digits = [&] {
    if (p == end_ || !is_digit(*p))
      fail(std::string("bad JSON: expected ") + what + ", got " +
           (p == end_ ? "the end of the header" : quoted({p, 1})));
    while (p != end_ && is_digit(*p)) ++p;
  };
  if (p != end_ && *p == '-') ++p;
  const char* const integer = p;
  digits();
  if (*integer == '0' && p - integer > 1) fail("bad JSON: number with a leading zero");
  if (p != end_ && *p == '.') ++p, digits();
  if (p != end_ && (*p == 'e' || *p == 'E')) {
    ++p;
    if (p != end_ && (*p == '+' || *p == '-')) ++p;
    digits();
  }
  const std::string_view token(at_, static_cast<size_t>(p - at_));
  at_ = p;
  return token;
}

}  // namespace ernie::io
