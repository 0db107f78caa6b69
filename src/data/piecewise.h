// A document that comes in pieces: keeps the end that is not yet certain, and asks for more text in growing steps, so
// that a document that cannot be cut anywhere costs linear time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

namespace sieve {

class Piecewise {
 public:
  bool empty() const { return pending_.empty(); }

  // take(text, last) consumes a prefix of `text`, all of it if last, and returns its length.
  template <class Take>
  void add(std::string_view text, bool last, const Take& take) {
    if (pending_.empty() && last) {
      take(text, true);
      return;
    }
    pending_ += text;
    if (last) {
      take(std::string_view(pending_), true);
      pending_ = {};  // the memory too: the document may have been long
      wanted_ = 0;
    } else if (pending_.size() >= wanted_) {
      pending_.erase(0, take(std::string_view(pending_), false));
      wanted_ = 2 * pending_.size();
    }
  }

 private:
  std::string pending_;
  std::size_t wanted_ = 0;  // bytes that make another try worth while
};

}  // namespace sieve
