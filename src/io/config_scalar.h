// The written form of configuration values, both ways. Readers return "" or what is wrong, as the end of a sentence.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sieve {

std::string read_boolean(std::string_view text, bool& out);
// Decimal, no leading zeros, exponent or suffix (k K M B G T: powers of 1000; Ki Mi Gi: of 1024) if the value is whole:
// 1e6, 1.5M.
std::string read_integer(std::string_view text, std::int64_t& out);
std::string read_real(std::string_view text, double& out);          // finite
std::string read_duration(std::string_view text, double& seconds);  // 90, 90s, 10m, 11h50m, 1d, 1.5h

// The shortest text that reads back as the same value.
std::string format_boolean(bool value);
std::string format_integer(std::int64_t value);
std::string format_real(double value);  // 0.0006, 1e-8, 10000
std::string format_duration(double seconds);
// Plain where that is unmistakable, double-quoted otherwise; `reserved` is a word that must not appear plain.
std::string format_text(std::string_view value, std::string_view reserved = "");

// Position of the first byte that is not part of valid UTF-8 (or is NUL), npos if there is none.
std::size_t find_invalid_utf8(std::string_view text);

}  // namespace sieve
