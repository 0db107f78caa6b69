// Errors carry a subject, numbers and the exit code they lead to. Checks stay on in release builds.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace sieve {

// Exit codes of the program, identical on all ranks (docs/design.md, "Exit codes").
enum class Exit : int {
  ok = 0,
  internal = 1,       // a bug of ours
  config = 2,         // usage or configuration
  data = 3,           // bad data, tokenizer or checkpoint
  memory = 4,         // out of memory
  nonfinite = 5,      // non-finite or spike budget spent
  peer = 6,           // peer or collective failure, timeout
  threshold = 7,      // a requested threshold failed (--fail-if)
  preempted = 75,     // stopped early but saved: requeue me
  interrupted = 130,  // Ctrl-C
};

class Error : public std::runtime_error {
 public:
  Error(Exit code, const std::string& what) : std::runtime_error(what), code_(code) {}
  Exit code() const noexcept { return code_; }

 private:
  Exit code_;
};

// Concatenates anything that streams.
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

// fail(Exit::data, "hdf5", "truncated: ", have, " of ", want, " bytes") throws "[hdf5] truncated: 3 of 8 bytes".
template <class... Parts>
[[noreturn]] void fail(Exit code, std::string_view subject, const Parts&... parts) {
  throw Error(code, cat("[", subject, "] ", parts...));
}

// A condition that only a bug in the caller can break.
template <class... Parts>
void require(bool condition, std::string_view subject, const Parts&... parts) {
  if (!condition) [[unlikely]]
    fail(Exit::internal, subject, parts...);
}

}  // namespace sieve
