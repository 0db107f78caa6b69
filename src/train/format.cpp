#include "train/format.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>

namespace sieve {
namespace {

std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

}  // namespace

std::string format_fixed(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

std::string format_scientific(double value) { return printed("%.1e", value); }

std::string format_count(double value) {
  static constexpr const char* kSuffixes[] = {"", "k", "M", "B", "T"};
  std::size_t i = 0;
  while (std::abs(value) >= 1000 && i + 1 < std::size(kSuffixes)) value /= 1000, ++i;
  const bool whole = i == 0 ? value == std::floor(value) : std::abs(value) >= 100;
  return format_fixed(value, whole ? 0 : 1) + kSuffixes[i];
}

std::string format_si(double value, const std::string& unit) {
  static constexpr const char* kPrefixes[] = {" ", " k", " M", " G", " T", " P", " E"};
  std::size_t i = 0;
  while (std::abs(value) >= 1000 && i + 1 < std::size(kPrefixes)) value /= 1000, ++i;
  return format_fixed(value, std::abs(value) >= 100 ? 0 : std::abs(value) >= 10 ? 1 : 2) + kPrefixes[i] + unit;
}

std::string format_grouped(std::int64_t value) {
  std::string digits = std::to_string(value);
  for (auto at = static_cast<std::int64_t>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3)
    digits.insert(static_cast<std::size_t>(at), " ");
  return digits;
}

std::string format_seconds(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  const auto s = static_cast<std::int64_t>(std::llround(seconds));
  char text[48];
  if (s >= 100 * 3600) {
    std::snprintf(text, sizeof text, "%lldd%02lldh", static_cast<long long>(s / 86400),
                  static_cast<long long>(s / 3600 % 24));
  } else if (s >= 3600) {
    std::snprintf(text, sizeof text, "%lldh%02lldm", static_cast<long long>(s / 3600),
                  static_cast<long long>(s / 60 % 60));
  } else if (s >= 60) {
    std::snprintf(text, sizeof text, "%lldm%02llds", static_cast<long long>(s / 60), static_cast<long long>(s % 60));
  } else {
    std::snprintf(text, sizeof text, "%llds", static_cast<long long>(s));
  }
  return text;
}

std::string format_bytes(double bytes) {
  static constexpr const char* kSuffixes[] = {" B", " KiB", " MiB", " GiB", " TiB"};
  std::size_t i = 0;
  while (std::abs(bytes) >= 1024 && i + 1 < std::size(kSuffixes)) bytes /= 1024, ++i;
  return format_fixed(bytes, i == 0 ? 0 : 1) + kSuffixes[i];
}

std::string json_number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[40];
  const auto end = std::to_chars(text, text + sizeof text, value);
  return {text, end.ptr};
}

}  // namespace sieve
