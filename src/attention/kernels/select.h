// The compute ABI of SparseK's selection: which keys every query keeps, the threshold that it sees, and the way back to
// the scores. Plain pointers, row-major and contiguous. Letters: B batch, H score heads, T time (keys j and queries i
// of one row). docs/attention.md, "Selection for every prefix", has the definitions; attention/sparsek.h the operator.
//
// One order for everything, decided once per key in fp64: u_j = s_j + slope * position_j, ties won by the later j.
// position_j counts from the start of j's document, so that a packed document is treated exactly as the same document
// alone. NaN ranks below everything (as -inf). The operator sees z_j = u_j / temperature, bounded
// to +-2^40 (order_score, operator_score).
//
// Key j competes at the queries i >= j + delay of its document: delay = window when candidates enter on leaving the
// window, 0 when they enter at once (then a key can be a member while the window still holds it: the attention masks j
// > i - window out of the branch).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

// One rounding, so that prefill, decoding and every backend order the keys alike.
SIEVE_HD inline double order_score(double score, double slope, std::int64_t position) {
  const double u = std::fma(slope, static_cast<double>(position), score);
  return u == u ? u : -std::numeric_limits<double>::infinity();
}

// Finite for every score: at 2^40 a unit is still resolved to 2^-12, beyond 2^53 the operator's unit band would vanish
// in rounding.
inline constexpr double kOperatorBound = 1099511627776.0;
SIEVE_HD inline double operator_score(double order_score, double temperature) {
  const double z = order_score / temperature;
  return z < -kOperatorBound ? -kOperatorBound : (z > kOperatorBound ? kOperatorBound : z);
}

// Key j lies in the soft band of the queries with low < tau_i < high; later ones have dropped it. Scores within
// rounding of an end count as beyond it: thresholds carry errors of some 1e-15 of their size, and scores on a grid meet
// them exactly, where every implementation shall take the same side of the operator's kink.
struct BandOfScore {
  double low, high;
};
SIEVE_HD inline BandOfScore band_of_score(double z) {
  constexpr double kNear = 0x1p-44;
  const double size = z < 0 ? -z : z, near = kNear * (size > 1 ? size : 1);
  return {z - 1 + near, z - near};
}

// Scores that the thresholds see: pool * k, 0 = all (pool = 0, or a product beyond 63 bits).
SIEVE_HD inline std::int64_t pool_scores(std::int64_t pool, std::int64_t k) {
  return k > std::numeric_limits<std::int64_t>::max() / (pool > 0 ? pool : 1) ? 0 : pool * k;
}

// Forward. With at most k candidates all are members, tau = -inf and m = clip(z - tau, 0, 1) = 1.
struct SelectArgs : KernelArgs {
  const void* scores_BHT;                  // f32 or f64
  const std::int32_t* document_starts_BT;  // first position of each token's document; null: one document a row
  DType dtype;
  std::int64_t B, H, T;
  std::int64_t k;      // members a query, >= 1
  std::int64_t pool;   // thresholds see the top pool * k scores of a prefix; 0: all of them
  std::int64_t delay;  // >= 0
  double slope;
  double temperature;  // > 0
  bool thresholds;  // false: only from and to are written (hard gates without gradient); the other outputs may be null

  // Members of the hard top-k: key j serves the queries from <= i < to, one interval because an evicted key never
  // returns. from == to: never. Both lie in [0, T]. Never more than k members a query.
  std::int32_t* from_BHT;
  std::int32_t* to_BHT;

  double* z_BHT;           // what the operator sees of key j
  double* tau_BHT;         // threshold of QUERY i (already delayed), non-decreasing inside a document
  std::int32_t* band_BHT;  // |F_i| of query i, exactly the number of keys j with band_from <= i < band_to
  std::int32_t*
      band_from_BHT;  // key j lies in the soft band, tau_i < z_j and z_j - 1 < tau_i and j in the pool of i, for
  std::int32_t*
      band_to_BHT;  // band_from <= i < band_to. It is saturated (m = 1, in the pool) from j + delay to band_from.
  std::int64_t* nan_count;  // number of NaN scores, on the scores' device; may be null
};

// out[0 .. n) becomes NaN unless *nan_count is 0: a selection ranks NaN last and would hide it, but the loss must show
// it.
struct PoisonArgs : KernelArgs {
  const std::int64_t* nan_count = nullptr;
  void* out = nullptr;
  std::int64_t n = 0;
  DType dtype = DType::f32;
};

// Backward through all prefixes. g_ij = dL/dm_ij for members j of i that lie in i's band, 0 elsewhere
// (docs/attention.md, "The way back"):
//   du_j = column_j - sum_{i in [band_from_j, band_to_j)} row_i / |F_i|,   dscores = du / temperature.
// du of every document sums to 0. Rows with |F_i| = 0 are taken as 0.
struct SelectBackwardArgs : KernelArgs {
  const double* column_BHT;  // sum over queries i of g_ij
  const double* row_BHT;     // sum over keys j of g_ij
  const std::int32_t* band_BHT;
  const std::int32_t* band_from_BHT;
  const std::int32_t* band_to_BHT;
  const std::int32_t* document_starts_BT;  // null: one document a row
  void* dscores_BHT;                       // f32 or f64, overwritten
  DType dtype;
  std::int64_t B, H, T;
  double temperature;
};

namespace cpu {
void select(const SelectArgs& a);
void score_backward(const SelectBackwardArgs& a);
inline void run(const SelectArgs& a) { select(a); }  // what launch() looks for
inline void run(const SelectBackwardArgs& a) { score_backward(a); }
void run(const PoisonArgs& a);
}  // namespace cpu
namespace cuda {
void run(const SelectArgs& a, Stream stream);
void run(const SelectBackwardArgs& a, Stream stream);
void run(const PoisonArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
