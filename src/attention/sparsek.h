// The SparseK operator: Euclidean projection of z onto the capped simplex,
//   SparseK(z, k) = argmin_p |p - z|^2  subject to  0 <= p <= 1, 1^T p = k            (arXiv 2406.16747)
// Its KKT conditions give p_j = clip(z_j - tau, 0, 1) with f(tau) = sum_j clip(z_j - tau, 0, 1) = k. f is continuous,
// non-increasing and piecewise linear. With S1 = {j: z_j >= tau + 1} and F = {j: 0 < z_j - tau < 1}
//   tau = (sum_{j in F} z_j + |S1| - k) / |F|. (1)
// Where F is empty (k integer, a gap of at least 1 below the k-th score) tau is an interval; the convention here is its
// upper end,
//   tau := sup{t : f(t) >= k} = z_(k) - 1. (2)
// n = k gives tau = z_min - 1 by (2), n < k gives tau = -inf; p = 1 in both.
//
// Three forms that agree (docs/attention.md): closed form by sorting; incremental by two heaps; tile-wise by two
// pointers over a sorted list. Prefix thresholds are non-decreasing: f_{i+1}(t) >= f_i(t), so {t: f_i >= k} only grows.
// A score that fell to tau is gone for good. With a pool of C the operator sees the top C scores of a prefix only;
// those dominate their predecessors too, so tau stays monotone. Everything is fp64, scores must be finite, sums are
// centred on a score of the band.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "attention/kernels/incremental_sparsek.h"
#include "attention/spec.h"

namespace sieve {

struct SelectArgs;
struct SelectionStats;

// (a) Closed form, O(n log n). z: n finite scores in any order, k >= 1.
double sparsek_threshold(std::span<const double> z, std::int64_t k);
// p (n): clip(z - tau, 0, 1). Returns tau.
double sparsek(std::span<const double> z, std::int64_t k, std::span<double> p);
// J^T g = s * (g - mean_F g), s the indicator of the band F (equation 3 of docs/attention.md). J is symmetric. dz (n)
// is overwritten.
void sparsek_vjp(std::span<const double> z, double tau, std::span<const double> g, std::span<double> dz);

// (b) class IncrementalSparseK, kernels/incremental_sparsek.h.

// (c) Tile-wise two-pointer form (kernels/threshold_walk.h): thresholds of every prefix of z, tau (n): tau[i] belongs
// to z[0..i]. pool_size as above. tile >= 1 scores are sorted and merged at a time; tau does not depend on it but for
// rounding.
void sparsek_prefix_thresholds(std::span<const double> z, std::int64_t k, std::int64_t pool_size, std::int64_t tile,
                               std::span<double> tau);

// Queries that pass before a key competes: the window when candidates enter on leaving it, else 0.
inline std::int64_t candidate_delay(const AttentionSpec& spec) {
  return spec.sparsek.candidates == Candidates::on_exit ? spec.window : 0;
}

// What the arrays of a finished cpu::select say (docs/attention.md, "Reading the statistics"). Without thresholds the
// band and saturation stay 0.
SelectionStats selection_stats(const SelectArgs& a);

}  // namespace sieve
