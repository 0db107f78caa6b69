#include "data/token_source.h"

#include <algorithm>

#include "core/error.h"

namespace sieve {

MemoryTokens::MemoryTokens(std::string name, std::vector<std::int32_t> tokens, std::vector<std::int64_t> starts)
    : name_(std::move(name)), tokens_(std::move(tokens)), starts_(std::move(starts)) {
  if (starts_.empty() && !tokens_.empty()) starts_.push_back(0);
  require(std::is_sorted(starts_.begin(), starts_.end()) &&
              (starts_.empty() || (starts_.front() == 0 && starts_.back() < this->tokens())),
          "tokens", name_, ": document starts must ascend from 0 and stay below ", this->tokens());
}

void MemoryTokens::read(std::int64_t begin, std::span<std::int32_t> out) const {
  require(begin >= 0 && begin <= tokens() && static_cast<std::int64_t>(out.size()) <= tokens() - begin, "tokens", name_,
          ": [", begin, ", ", begin, " + ", out.size(), ") of ", tokens());
  std::copy_n(tokens_.begin() + begin, out.size(), out.begin());
}

void MemoryTokens::document_starts(std::int64_t begin, std::int64_t end, std::vector<std::int64_t>& out) const {
  const auto first = std::lower_bound(starts_.begin(), starts_.end(), begin);
  out.insert(out.end(), first, std::max(first, std::lower_bound(starts_.begin(), starts_.end(), end)));
}

}  // namespace sieve
