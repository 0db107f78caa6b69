// Numbers as people read them on a progress line.
#pragma once

#include <cstdint>
#include <string>

namespace sieve {

std::string format_fixed(double value, int decimals);  // "3.412"; "nan" and "inf" as such
std::string format_scientific(double value);           // "5.9e-04"
std::string format_count(double value);                // "412k", "124.5M": three or four digits and a decimal suffix
std::string format_si(double value, const std::string& unit);  // "0.86 GFLOP", "412 ktok"
std::string format_grouped(std::int64_t value);                // "287 644"
std::string format_seconds(double seconds);                    // "4h42m", "3m05s", "12s"
std::string format_bytes(double bytes);                        // "31.2 GiB"
std::string json_number(double value);  // shortest text that reads back to `value`; "null" where it is not finite

}  // namespace sieve
