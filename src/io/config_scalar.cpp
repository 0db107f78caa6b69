#include "io/config_scalar.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <limits>
#include <system_error>

#include "core/error.h"

namespace sieve {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// The parts of [-]digits[.digits][e[+-]digits], as far as they go; the rest of the text stays in `rest`.
struct Decimal {
  bool negative = false;
  std::string_view whole, fraction, exponent, rest;  // exponent with its sign
  bool has_point = false;
};

// Returns what is wrong, or "".
std::string split_decimal(std::string_view text, Decimal& d) {
  std::size_t i = 0;
  auto digits = [&] {
    const std::size_t begin = i;
    while (i < text.size() && is_digit(text[i])) ++i;
    return text.substr(begin, i - begin);
  };
  if (i < text.size() && text[i] == '-') d.negative = true, ++i;
  d.whole = digits();
  if (i < text.size() && text[i] == '.') d.has_point = true, ++i, d.fraction = digits();
  if (d.whole.empty() && d.fraction.empty()) return "no digits";
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    const std::size_t mark = i++;
    const std::size_t begin = i;
    if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
    if (digits().empty()) {
      i = mark;
    } else {
      d.exponent = text.substr(begin, i - begin);
    }
  }
  d.rest = text.substr(i);
  if (d.whole.size() > 1 && d.whole[0] == '0') return "leading zeros (some readers take them for octal)";
  return "";
}

std::string got(std::string_view text) { return cat(", got \"", text.substr(0, 80), "\""); }

std::string integer_error(std::string_view text, std::string_view why) {
  return cat("wants an integer (4096, 1e6, 512Ki, 10B)", got(text), why.empty() ? "" : ": ", why);
}

// 0: unknown
std::int64_t suffix_value(std::string_view s) {
  static constexpr struct {
    std::string_view name;
    std::int64_t value;
  } kSuffixes[] = {{"", 1},           {"k", 1000},          {"K", 1000},     {"M", 1000000},  {"B", 1000000000},
                   {"G", 1000000000}, {"T", 1000000000000}, {"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}};
  for (const auto& entry : kSuffixes) {
    if (entry.name == s) return entry.value;
  }
  return 0;
}

bool equals_lower(std::string_view text, std::string_view word) {
  return std::equal(text.begin(), text.end(), word.begin(), word.end(),
                    [](char a, char b) { return (a >= 'A' && a <= 'Z' ? static_cast<char>(a + 32) : a) == b; });
}

template <class T>
std::string chars_of(T value, auto... format) {
  char buffer[400];  // the longest fixed double has 309 digits before or 324 after the point
  const auto [end, error] = std::to_chars(buffer, std::end(buffer), value, format...);
  require(error == std::errc(), "config", "number does not fit its buffer");
  return std::string(buffer, end);
}

}  // namespace

std::string read_boolean(std::string_view text, bool& out) {
  if (text == "true" || text == "false") {
    out = text == "true";
    return "";
  }
  for (std::string_view word : {"true", "yes", "on", "y", "1"}) {
    if (equals_lower(text, word)) return cat("wants true or false", got(text), " (write true)");
  }
  for (std::string_view word : {"false", "no", "off", "n", "0"}) {
    if (equals_lower(text, word)) return cat("wants true or false", got(text), " (write false)");
  }
  return cat("wants true or false", got(text));
}

std::string read_integer(std::string_view text, std::int64_t& out) {
  Decimal d;
  if (std::string why = split_decimal(text, d); !why.empty()) {
    return integer_error(text, why == "no digits" ? "" : why);
  }
  const std::int64_t suffix = suffix_value(d.rest);
  if (suffix == 0 || (suffix != 1 && !d.exponent.empty())) {
    return integer_error(text, is_letter(d.rest[0]) ? "suffixes are k M B T and Ki Mi Gi" : "");
  }
  while (!d.fraction.empty() && d.fraction.back() == '0') d.fraction.remove_suffix(1);
  int exponent = 0;
  const std::string_view unsigned_exponent = d.exponent.substr(!d.exponent.empty() && d.exponent[0] == '+' ? 1 : 0);
  std::from_chars(unsigned_exponent.data(), unsigned_exponent.data() + unsigned_exponent.size(), exponent);
  if (d.whole.size() + d.fraction.size() > 25 || d.exponent.size() > 4) return integer_error(text, "too many digits");
  exponent -= static_cast<int>(d.fraction.size());

  // 25 digits times 10^12 stay below 2^127; every later step keeps the value within that.
  unsigned __int128 value = 0;
  for (char c : d.whole) value = value * 10 + static_cast<unsigned>(c - '0');
  for (char c : d.fraction) value = value * 10 + static_cast<unsigned>(c - '0');
  value *= static_cast<unsigned __int128>(suffix);
  const unsigned __int128 limit = std::numeric_limits<std::int64_t>::max();
  for (; exponent < 0 && value != 0; ++exponent, value /= 10) {
    if (value % 10 != 0) return integer_error(text, "not a whole number");
  }
  for (; exponent > 0 && value != 0 && value <= limit; --exponent) value *= 10;
  if (value > limit) return integer_error(text, "beyond 2^63");
  out = d.negative ? -static_cast<std::int64_t>(value) : static_cast<std::int64_t>(value);
  return "";
}

std::string read_real(std::string_view text, double& out) {
  Decimal d;
  std::string why = split_decimal(text, d);
  if (why.empty() && !d.rest.empty())
    why = suffix_value(d.rest) > 1 ? "suffixes are for integers; write 1e6" : "no digits";
  if (!why.empty()) return cat("wants a number (0.1, 3e-4)", got(text), why == "no digits" ? "" : ": " + why);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(out)) {
    return cat("wants a number", got(text), ": does not fit a double");
  }
  return "";
}

std::string read_duration(std::string_view text, double& seconds) {
  const std::string wrong = cat("wants a duration (90, 90s, 10m, 11h50m)", got(text));
  static constexpr std::string_view kUnits = "dhms";
  static constexpr double kSeconds[] = {86400, 3600, 60, 1};
  double total = 0;
  std::size_t next_unit = 0;
  std::string_view rest = text;
  do {
    Decimal d;
    if (!split_decimal(rest, d).empty() || d.negative || !d.exponent.empty()) return wrong;
    double value = 0;
    const std::string_view number = rest.substr(0, rest.size() - d.rest.size());
    if (!read_real(number, value).empty()) return wrong;
    if (d.rest.empty()) {  // no unit: seconds, alone
      if (next_unit != 0) return wrong;
      seconds = value;
      return "";
    }
    const std::size_t unit = kUnits.find(d.rest[0]);
    if (unit == std::string_view::npos || unit < next_unit) return wrong;
    total += value * kSeconds[unit];
    next_unit = unit + 1;
    rest = d.rest.substr(1);
  } while (!rest.empty());
  if (!std::isfinite(total)) return wrong;
  seconds = total;
  return "";
}

std::string format_boolean(bool value) { return value ? "true" : "false"; }
std::string format_integer(std::int64_t value) { return chars_of(value); }

std::string format_real(double value) {
  require(std::isfinite(value), "config", "a value that is not finite cannot be written");
  const double size = std::abs(value);
  if (size == 0 || (size >= 1e-5 && size < 1e15)) return chars_of(value, std::chars_format::fixed);
  std::string text = chars_of(value, std::chars_format::scientific);  // 1e-08: drop the padding of the exponent
  std::size_t e = text.find('e') + 2;
  while (e + 1 < text.size() && text[e] == '0') text.erase(e, 1);
  if (const std::size_t plus = text.find("e+"); plus != std::string::npos) text.erase(plus + 1, 1);
  return text;
}

std::string format_duration(double seconds) {
  if (!(seconds >= 60) || seconds != std::floor(seconds) || seconds >= 1e9) {
    return seconds == 0 ? "0"
                        : (std::abs(seconds) >= 1e-5 && std::abs(seconds) < 1e15
                               ? format_real(seconds) + "s"
                               : chars_of(seconds, std::chars_format::fixed) + "s");
  }
  const auto whole = static_cast<std::int64_t>(seconds);
  std::string out;
  if (whole / 3600 > 0) out += format_integer(whole / 3600) + "h";
  if (whole / 60 % 60 > 0) out += format_integer(whole / 60 % 60) + "m";
  if (whole % 60 > 0) out += format_integer(whole % 60) + "s";
  return out;
}

std::string format_text(std::string_view value, std::string_view reserved) {
  require(find_invalid_utf8(value) == std::string_view::npos, "config", "a text that is not UTF-8 cannot be written");
  bool plain = !value.empty() && value != reserved && (is_letter(value[0]) || value[0] == '_' || value[0] == '/');
  for (char c : value)
    plain = plain && (is_letter(c) || is_digit(c) || std::string_view("_./*+=@-").find(c) != std::string_view::npos);
  for (std::string_view word : {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "auto"}) {
    plain = plain && !equals_lower(value, word);
  }
  if (plain) return std::string(value);
  std::string out = "\"";
  for (char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      (out += '\\') += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      ((out += "\\x") += "0123456789abcdef"[byte >> 4]) += "0123456789abcdef"[byte & 15];
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto at = [&](std::size_t k) { return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u; };
    const unsigned c = at(0);
    std::size_t length = c < 0x80                ? 1
                         : c >= 0xc2 && c < 0xe0 ? 2
                         : c >= 0xe0 && c < 0xf0 ? 3
                         : c >= 0xf0 && c < 0xf5 ? 4
                                                 : 0;
    if (length == 0 || c == 0) return i;
    for (std::size_t k = 1; k < length; ++k) {
      if ((at(k) & 0xc0) != 0x80) return i;
    }
    // overlong forms, surrogates, beyond U+10FFFF
    if ((c == 0xe0 && at(1) < 0xa0) || (c == 0xed && at(1) >= 0xa0) || (c == 0xf0 && at(1) < 0x90) ||
        (c == 0xf4 && at(1) >= 0x90)) {
      return i;
    }
    i += length;
  }
  return std::string_view::npos;
}

}  // namespace sieve
