// The selection kernel with its memory, and the candidates of a query straight from the definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "attention/kernels/select.h"
#include "core/rng.h"

namespace sieve::test {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
using Starts = std::vector<std::int32_t>;

// The kernel's arguments together with the memory that they point to.
struct Selection {
  SelectArgs a{};
  std::vector<double> scores, z, tau;
  std::vector<float> scores_f32;
  Starts starts;
  std::vector<std::int32_t> band, from, to, band_from, band_to;
  std::int64_t nan_count = -1;

  Selection(std::vector<double> s, std::int64_t B, std::int64_t H, DType dtype = DType::f64) : scores(std::move(s)) {
    a.B = B;
    a.H = H;
    a.T = static_cast<std::int64_t>(scores.size()) / std::max<std::int64_t>(1, B * H);
    a.dtype = dtype;
    a.k = 1;
    a.pool = 4;
    a.temperature = 1;
    a.thresholds = true;
    scores_f32.assign(scores.begin(), scores.end());
  }

  void run() {
    const std::size_t n = scores.size();
    a.scores_BHT = a.dtype == DType::f32 ? static_cast<const void*>(scores_f32.data()) : scores.data();
    a.document_starts_BT = starts.empty() ? nullptr : starts.data();
    for (auto* v : {&z, &tau}) v->assign(n, std::nan(""));
    for (auto* v : {&band, &from, &to, &band_from, &band_to}) v->assign(n, -9);
    a.from_BHT = from.data();
    a.to_BHT = to.data();
    a.nan_count = &nan_count;
    if (a.thresholds) {
      a.z_BHT = z.data();
      a.tau_BHT = tau.data();
      a.band_BHT = band.data();
      a.band_from_BHT = band_from.data();
      a.band_to_BHT = band_to.data();
    }
    cpu::select(a);
  }

  bool same_as(const Selection& o) const {
    return z == o.z && tau == o.tau && band == o.band && from == o.from && to == o.to && band_from == o.band_from &&
           band_to == o.band_to;
  }
};

// Document boundaries of one row: lengths drawn from 1, small and large ones. Empty: one document.
inline Starts make_documents(std::int64_t T, std::uint64_t seed) {
  Starts starts(static_cast<std::size_t>(T));
  const Philox random{seed, 5};
  for (std::int64_t begin = 0, d = 0; begin < T; ++d) {
    const double draw = random.uniform(static_cast<std::uint64_t>(d));
    const auto longest = static_cast<std::int64_t>(draw < 0.3 ? 1 : (draw < 0.7 ? 9 : T));
    const std::int64_t length =
        1 + static_cast<std::int64_t>(random.bits64(static_cast<std::uint64_t>(d) + 999) % longest);
    for (std::int64_t t = begin; t < std::min(T, begin + length); ++t)
      starts[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(begin);
    begin += length;
  }
  return starts;
}

inline std::pair<std::int64_t, std::int64_t> document_of(const Starts& starts, std::int64_t i, std::int64_t T) {
  if (starts.empty()) return {0, T};
  const std::int32_t begin = starts[static_cast<std::size_t>(i)];
  return {begin, std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin()};
}

// Candidates of query i (one row), best first in the total order; NaN as -inf.
struct Candidate {
  double u, z;
  std::int64_t key;
};
inline std::vector<Candidate> candidates_of(const Selection& s, std::int64_t i) {
  const auto [begin, end] = document_of(s.starts, i, s.a.T);
  std::vector<Candidate> out;
  for (std::int64_t j = begin; j <= i - s.a.delay; ++j) {
    double u = std::fma(s.a.slope, static_cast<double>(j - begin), s.scores[static_cast<std::size_t>(j)]);
    if (std::isnan(u)) u = -kInfinity;
    out.push_back({u, std::clamp(u / s.a.temperature, -std::ldexp(1.0, 40), std::ldexp(1.0, 40)), j});
  }
  std::sort(out.begin(), out.end(),
            [](const Candidate& x, const Candidate& y) { return x.u != y.u ? x.u > y.u : x.key > y.key; });
  return out;
}

inline std::uint64_t draw(std::uint64_t& state, std::uint64_t below) { return Philox{state++, 3}.bits64(0) % below; }

}  // namespace sieve::test
