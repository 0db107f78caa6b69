// Score sequences that SparseK's tests share: everything that has ever broken a selection.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "core/rng.h"

namespace sieve::test {

inline const std::vector<std::string> kScoreKinds = {"normal",     "narrow",     "wide",       "equal", "quantised",
                                                     "two_values", "increasing", "decreasing", "giant", "burst",
                                                     "plateau",    "integers",   "alternating"};

// T fp32 scores. Every value fits fp32, so that f32 and f64 kernels see the same.
inline std::vector<double> make_scores(const std::string& kind, std::int64_t T, std::uint64_t seed) {
  const Philox random{seed, 77};
  std::vector<double> s(static_cast<std::size_t>(T));
  for (std::int64_t j = 0; j < T; ++j) {
    const auto c = static_cast<std::uint64_t>(j);
    const double normal = random.normal(c), uniform = random.uniform(c + (1ull << 40));
    double v = normal;
    if (kind == "narrow") v = 0.3 * normal;
    if (kind == "wide") v = 4 * normal;
    if (kind == "equal") v = 0.75;
    if (kind == "quantised") v = 0.25 * std::floor(4 * uniform);
    if (kind == "two_values") v = uniform < 0.5 ? 0 : 1.5;
    if (kind == "increasing") v = 0.02 * static_cast<double>(j);
    if (kind == "decreasing") v = -0.02 * static_cast<double>(j);
    if (kind == "giant") v = j == T / 3 ? 1e6 : normal;
    if (kind == "burst") v = (j / 16) % 5 == 2 ? 2 + 0.1 * normal : 0.2 * normal;
    if (kind == "plateau") v = 1.25 * std::floor(5 * uniform);  // gaps of 1.25: the band is often empty
    if (kind == "integers") v = std::floor(6 * uniform);        // gaps of exactly 1
    if (kind == "alternating") v = (j % 2 == 0 ? 1 : -1) * 0.5 * uniform;
    s[static_cast<std::size_t>(j)] = static_cast<float>(v);
  }
  return s;
}

// tau = sup{t : f(t) >= k} by bisection in 80-bit arithmetic: shares nothing with the three forms.
inline double bisected_threshold(std::span<const double> z, std::int64_t k) {
  if (static_cast<std::int64_t>(z.size()) < k) return -std::numeric_limits<double>::infinity();
  const auto enough = [&](long double t) {
    long double sum = 0;
    for (double v : z) sum += std::clamp<long double>(static_cast<long double>(v) - t, 0, 1);
    // On a plateau f is k up to the rounding of v - t.
    return sum >= static_cast<long double>(k) - 1e-15L;
  };
  long double low = static_cast<long double>(*std::min_element(z.begin(), z.end())) - 2;
  long double high = *std::max_element(z.begin(), z.end());
  for (int step = 0; step < 90 && high - low > 1e-17L; ++step) {
    const long double middle = (low + high) / 2;
    (enough(middle) ? low : high) = middle;
  }
  return static_cast<double>(low);
}

// The largest `count` values.
inline std::vector<double> largest(std::vector<double> z, std::int64_t count) {
  std::sort(z.begin(), z.end(), std::greater<>());
  if (count > 0 && static_cast<std::int64_t>(z.size()) > count) z.resize(static_cast<std::size_t>(count));
  return z;
}

}  // namespace sieve::test
