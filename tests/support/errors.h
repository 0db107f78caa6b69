// What a test reads off an error.
#pragma once

#include <string>
#include <string_view>

#include "core/error.h"

namespace sieve::test {

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

// The message of the Error that f throws, or "" if it throws none. Other exceptions pass through and fail the test.
template <class F>
std::string error_text(F&& f) {
  try {
    f();
  } catch (const Error& e) { return e.what(); }
  return "";
}

// The same behind its exit code, "1 [op] what is wrong", or "no error".
template <class F>
std::string coded_error_text(F&& f) {
  try {
    f();
  } catch (const Error& e) { return cat(static_cast<int>(e.code()), " ", e.what()); }
  return "no error";
}

}  // namespace sieve::test
