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

}  // namespace sieve::test
