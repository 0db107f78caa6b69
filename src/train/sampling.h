// From logits to the next token, and from tokens to text as it appears. Pure functions: the random number comes from
// outside.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace sieve {

struct SamplingConfig {
  double temperature = 1.0;  // divides the logits; 0: the likeliest token (the first of equals)
  std::int64_t top_k = 0;    // keep so many likeliest tokens; 0: all
  double top_p = 1.0;        // of these keep the likeliest that hold this probability together (at least one)
};

// The token that `uniform` in [0, 1) falls on. Order of candidates: falling logit, then rising id; probabilities in
// fp64. Logits that are NaN or all -infinity are Error(Exit::nonfinite).
std::int32_t sample_token(std::span<const float> logits, const SamplingConfig& config, double uniform);

// Bytes arrive in any pieces; text leaves in whole UTF-8 characters. Bytes that cannot be UTF-8 become U+FFFD (one per
// maximal broken prefix, as Unicode recommends).
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);  // what is complete by now
  std::string finish();                      // what is left, as U+FFFD

 private:
  std::string pending_;
};

}  // namespace sieve
