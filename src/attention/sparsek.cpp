#include "attention/sparsek.h"

#include <algorithm>
#include <cstddef>

#include "attention/kernels/threshold_walk.h"
#include "core/error.h"

namespace sieve {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The three classes of a score under tau = t. "z - 1 >= t" is the one definition of saturated in every form: monotone
// under rounding.
bool is_saturated(double z, double t) { return z - 1 >= t; }
bool in_band(double z, double t) { return z > t && !is_saturated(z, t); }

// f(t) - k; the saturated are counted, so that a plateau of f is exactly flat.
double excess(std::span<const double> z, double t, std::int64_t k) {
  std::int64_t saturated = 0;
  double sum = 0;
  for (double v : z) {
    if (is_saturated(v, t)) ++saturated;
    else if (v > t) sum += v - t;
  }
  return static_cast<double>(saturated - k) + sum;
}

}  // namespace

double sparsek_threshold(std::span<const double> z, std::int64_t k) {
  require(k >= 1, "sparsek", "k must be at least 1, got ", k);
  const auto n = static_cast<std::int64_t>(z.size());
  if (n < k) return -kInfinity;
  if (n == k) return *std::min_element(z.begin(), z.end()) - 1;
  std::vector<double> breakpoints(z.begin(), z.end());
  for (double v : z) breakpoints.push_back(v - 1);
  std::sort(breakpoints.begin(), breakpoints.end());
  // f >= k up to some breakpoint and below k from the next one on: f is linear between the two. The last breakpoint has
  // f = 0.
  const auto next =
      std::partition_point(breakpoints.begin(), breakpoints.end(), [&](double t) { return excess(z, t, k) >= 0; });
  const double low = *(next - 1);
  double centre = 0, sum = 0;
  std::int64_t saturated = 0, band = 0;
  for (double v : z) {
    if (v - 1 > low) {
      ++saturated;
    } else if (v > low) {  // includes v - 1 == low: above `low` it is fractional
      if (band++ == 0) centre = v;
      sum += v - centre;
    }
  }
  if (band == 0) return *next;  // two breakpoints that differ by rounding only
  return std::clamp(centre + (sum + static_cast<double>(saturated - k)) / static_cast<double>(band), low, *next);
}

double sparsek(std::span<const double> z, std::int64_t k, std::span<double> p) {
  require(p.size() == z.size(), "sparsek", "p has ", p.size(), " elements for ", z.size(), " scores");
  const double tau = sparsek_threshold(z, k);
  for (std::size_t j = 0; j < z.size(); ++j) p[j] = std::clamp(z[j] - tau, 0.0, 1.0);
  return tau;
}

void sparsek_vjp(std::span<const double> z, double tau, std::span<const double> g, std::span<double> dz) {
  require(g.size() == z.size() && dz.size() == z.size(), "sparsek", "gradient sizes ", g.size(), " and ", dz.size(),
          " for ", z.size(), " scores");
  double sum = 0;
  std::int64_t band = 0;
  for (std::size_t j = 0; j < z.size(); ++j) {
    if (!in_band(z[j], tau)) continue;
    sum += g[j];
    ++band;
  }
  const double mean = band > 0 ? sum / static_cast<double>(band) : 0;
  for (std::size_t j = 0; j < z.size(); ++j) dz[j] = in_band(z[j], tau) ? g[j] - mean : 0;
}

void sparsek_prefix_thresholds(std::span<const double> z, std::int64_t k, std::int64_t pool_size, std::int64_t tile,
                               std::span<double> tau) {
  require(tau.size() == z.size() && tile >= 1, "sparsek", "prefix thresholds: ", tau.size(), " outputs for ", z.size(),
          " scores, tile ", tile);
  const auto n = static_cast<std::int64_t>(z.size());
  ThresholdWalk walk(k, pool_size == 0 ? std::max(n, k) : pool_size);
  for (std::int64_t p = 0; p < n; p += tile) {
    walk.tile(z.data() + p, z.data() + p, std::min(tile, n - p), p, tau.data() + p, nullptr);
  }
}

}  // namespace sieve
