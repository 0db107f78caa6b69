// Whether a greedy text is what the model says it is: one forward over all of it, and at every new token the likeliest
// must be the one that was generated.
#pragma once

#include <cstdint>
#include <span>

#include "nn/decoder.h"

namespace sieve {

struct Verification {
  static constexpr double kTie = 1e-3;           // logits closer than that may rank either way
  static constexpr double kMostExcused = 0.005;  // share of tokens that may be such ties
  std::int64_t checked = 0, excused = 0, wrong = 0;
  std::int64_t first_wrong = -1;  // number of the new token
  double largest_gap = 0;         // by which a generated token was not the likeliest
  bool passed() const {
    return wrong == 0 && static_cast<double>(excused) <= kMostExcused * static_cast<double>(checked);
  }
};

// `fresh` came after `prompt` (at least one token). Tokens from `vocab` on are no candidates.
Verification verify_greedy(const Decoder& model, std::span<const std::int32_t> prompt,
                           std::span<const std::int32_t> fresh, std::int64_t vocab);

}  // namespace sieve
