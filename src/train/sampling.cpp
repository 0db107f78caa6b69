#include "train/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace sieve {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Sequence {
  std::size_t length;  // bytes that belong together
  bool valid, open;    // a character | a prefix of one at the end of the input
};

// Table 3-7 of the Unicode standard: well-formed UTF-8 byte sequences.
Sequence next_sequence(std::string_view s) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  const std::size_t want = lead >= 0xC2 && lead <= 0xDF   ? 2
                           : lead >= 0xE0 && lead <= 0xEF ? 3
                           : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                          : 0;
  if (want == 0) return {1, false, false};
  for (std::size_t i = 1; i < want; ++i) {
    if (i == s.size()) return {i, false, true};
    unsigned low = 0x80, high = 0xBF;
    if (i == 1) {
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (byte(i) < low || byte(i) > high) return {i, false, false};
  }
  return {want, true, false};
}

}  // namespace

std::int32_t sample_token(std::span<const float> logits, const SamplingConfig& config, double uniform) {
  require(!logits.empty(), "sample", "no logits");
  float best = -std::numeric_limits<float>::infinity();
  for (const float l : logits) {
    if (std::isnan(l)) fail(Exit::nonfinite, "sample", "a logit is not a number");
    best = std::max(best, l);
  }
  if (!std::isfinite(best)) fail(Exit::nonfinite, "sample", "the largest logit is ", best);
  if (config.temperature <= 0)
    return static_cast<std::int32_t>(std::find(logits.begin(), logits.end(), best) - logits.begin());

  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto by_logit = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  };
  if (config.top_k > 0 && static_cast<std::size_t>(config.top_k) < order.size()) {
    std::nth_element(order.begin(), order.begin() + config.top_k, order.end(), by_logit);
    order.resize(static_cast<std::size_t>(config.top_k));
  }
  std::sort(order.begin(), order.end(), by_logit);

  std::vector<double> cumulative(order.size());
  double total = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    total += std::exp((static_cast<double>(logits[static_cast<std::size_t>(order[i])]) - best) / config.temperature);
    cumulative[i] = total;
  }
  std::size_t kept = order.size();
  if (config.top_p < 1.0) {
    const auto enough = std::lower_bound(cumulative.begin(), cumulative.end(), config.top_p * total);
    kept = std::min(kept, static_cast<std::size_t>(enough - cumulative.begin()) + 1);
  }
  const auto end = cumulative.begin() + static_cast<std::ptrdiff_t>(kept);
  const auto drawn = std::upper_bound(cumulative.begin(), end, uniform * cumulative[kept - 1]);
  return order[std::min(kept - 1, static_cast<std::size_t>(drawn - cumulative.begin()))];
}

std::string Utf8Stream::push(std::string_view bytes) {
  pending_ += bytes;
  std::string out;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Sequence s = next_sequence(rest);
    if (s.open) break;
    out += s.valid ? rest.substr(0, s.length) : kReplacement;
    rest.remove_prefix(s.length);
  }
  pending_ = std::string(rest);
  return out;
}

std::string Utf8Stream::finish() {
  std::string out = pending_.empty() ? std::string() : std::string(kReplacement);
  pending_.clear();
  return out;
}

}  // namespace sieve
