// From gate gradients back to the scores, against finite differences; the statistics of a selection.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "attention/attention.h"
#include "attention/score_cases.h"
#include "attention/selection_fixture.h"
#include "attention/sparsek.h"
#include "core/parallel_for.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

TEST_CASE("score gradient through all prefixes against finite differences") {
  // L = sum_ij g_ij m_ij over the members. m is piecewise linear in the scores: central differences are exact between
  // kinks.
  constexpr double kStep = 1e-5;
  double worst = 0, worst_sum = 0;
  int compared = 0, pool_bound = 0;
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    std::uint64_t state = 7000 + 50 * seed;
    const auto T = static_cast<std::int64_t>(3 + draw(state, 28));
    Selection s(make_scores(std::array{"normal", "narrow", "wide"}[seed % 3], T, seed), 1, 1);
    s.a.k = 1 + static_cast<std::int64_t>(draw(state, 5));
    s.a.pool = std::array{2, 0, 2, 4}[seed % 4];
    s.a.delay = static_cast<std::int64_t>(draw(state, 4));
    s.a.slope = seed % 2 == 0 ? 0 : 0.02;
    s.a.temperature = seed % 5 == 0 ? 0.6 : 1;
    if (seed % 3 == 0) s.starts = make_documents(T, seed);
    s.run();
    const auto at = [](std::int64_t x) { return static_cast<std::size_t>(x); };
    const auto g = [&](std::int64_t i, std::int64_t j) {
      return Philox{seed, 4}.normal(static_cast<std::uint64_t>(i * T + j));
    };
    // Kinks: order at the cut of the members and of the pool, both ends of the band.
    double margin = kInfinity;
    std::vector<double> column(at(T), 0.0), row(at(T), 0.0);
    for (std::int64_t i = 0; i < T; ++i) {
      const auto best = candidates_of(s, i);
      const auto m = static_cast<std::int64_t>(best.size());
      const std::int64_t pool = s.a.pool == 0 ? m : s.a.pool * s.a.k;
      for (std::int64_t cut : {s.a.k, pool}) {
        if (m > cut) margin = std::min(margin, best[at(cut - 1)].z - best[at(cut)].z);
      }
      const double tau = s.tau[at(i)];
      if (tau == -kInfinity) continue;
      for (const auto& c : best) margin = std::min({margin, std::abs(c.z - tau), std::abs(c.z - 1 - tau)});
      pool_bound += m > pool && best[at(pool)].z > tau;
      for (std::int64_t j = 0; j < T; ++j) {
        const bool counts = s.from[at(j)] <= i && i < s.to[at(j)] && s.band_from[at(j)] <= i && i < s.band_to[at(j)];
        if (!counts) continue;
        column[at(j)] += g(i, j);
        row[at(i)] += g(i, j);
      }
    }
    if (margin < 8 * kStep) continue;
    ++compared;

    std::vector<double> ds(at(T), std::nan(""));
    SelectBackwardArgs back{{},
                            column.data(),
                            row.data(),
                            s.band.data(),
                            s.band_from.data(),
                            s.band_to.data(),
                            s.a.document_starts_BT,
                            ds.data(),
                            DType::f64,
                            1,
                            1,
                            T,
                            s.a.temperature};
    cpu::score_backward(back);

    const auto loss = [&] {
      double sum = 0;
      for (std::int64_t i = 0; i < T; ++i) {
        const auto best = candidates_of(s, i);
        const auto m = static_cast<std::int64_t>(best.size());
        std::vector<double> z;
        for (const auto& c : best) z.push_back(c.z);
        const double tau = m <= s.a.k ? -kInfinity : sparsek_threshold(largest(z, s.a.pool * s.a.k), s.a.k);
        for (std::int64_t r = 0; r < std::min(m, s.a.k); ++r) {
          sum += g(i, best[at(r)].key) * std::clamp(best[at(r)].z - tau, 0.0, 1.0);
        }
      }
      return sum;
    };
    for (std::int64_t j = 0; j < T; ++j) {
      const double keep = s.scores[at(j)];
      s.scores[at(j)] = keep + kStep;
      const double up = loss();
      s.scores[at(j)] = keep - kStep;
      const double down = loss();
      s.scores[at(j)] = keep;
      worst = std::max(worst, std::abs((up - down) / (2 * kStep) - ds[at(j)]) / std::max(1.0, std::abs(ds[at(j)])));
    }
    for (std::int64_t begin = 0, end; begin < T; begin = end) {
      end = document_of(s.starts, begin, T).second;
      worst_sum = std::max(worst_sum, std::abs(std::accumulate(ds.begin() + begin, ds.begin() + end, 0.0)));
    }
  }
  CHECK(compared >= 200);
  CHECK(pool_bound >= 50);  // pool exits are part of what was compared
  CHECK(worst <= 1e-7);
  CHECK(worst_sum <= 1e-10);
}

TEST_CASE("score gradients of long documents sum to zero, in any number of threads") {
  const std::int64_t T = 3000, H = 2;
  auto scores = make_scores("narrow", T * H, 17);
  Selection s(scores, 1, H);
  s.starts = make_documents(T, 1);
  s.a.k = 40;
  s.a.delay = 16;
  s.run();
  std::vector<double> column(scores.size(), 0.0), row(scores.size(), 0.0);
  for (std::int64_t h = 0; h < H; ++h) {
    for (std::int64_t j = 0; j < T; ++j) {
      const auto key = static_cast<std::size_t>(h * T + j);
      for (std::int64_t i = std::max(s.from[key], s.band_from[key]); i < std::min(s.to[key], s.band_to[key]); ++i) {
        const double g = Philox{2, static_cast<std::uint64_t>(i)}.normal(key);
        column[key] += g;
        row[static_cast<std::size_t>(h * T + i)] += g;
      }
    }
  }
  std::vector<double> ds(scores.size()), again(scores.size());
  SelectBackwardArgs back{{},
                          column.data(),
                          row.data(),
                          s.band.data(),
                          s.band_from.data(),
                          s.band_to.data(),
                          s.starts.data(),
                          ds.data(),
                          DType::f64,
                          1,
                          H,
                          T,
                          0.5};
  cpu::score_backward(back);
  for (std::int64_t h = 0; h < H; ++h) {
    for (std::int64_t begin = 0, end; begin < T; begin = end) {
      end = document_of(s.starts, begin, T).second;
      CHECK(std::abs(std::accumulate(ds.begin() + h * T + begin, ds.begin() + h * T + end, 0.0)) <= 1e-10);
    }
  }
  CHECK(std::any_of(ds.begin(), ds.end(), [](double d) { return d != 0; }));
  const int threads = num_threads();
  set_num_threads(3);
  back.dscores_BHT = again.data();
  cpu::score_backward(back);
  set_num_threads(threads);
  CHECK(again == ds);
  std::vector<float> single(scores.size());
  back.dscores_BHT = single.data();
  back.dtype = DType::f32;
  cpu::score_backward(back);
  for (std::size_t j = 0; j < single.size(); ++j) REQUIRE(single[j] == static_cast<float>(ds[j]));
}

TEST_CASE("statistics equal their definitions") {
  Selection s(make_scores("normal", 240, 33), 1, 2);
  const std::int64_t T = s.a.T;
  s.starts = Starts(static_cast<std::size_t>(T), 0);
  std::fill(s.starts.begin() + 90, s.starts.end(),
            90);  // a second document; the first one has fewer than k candidates more
  s.a.k = 6;
  s.a.pool = 3;
  s.a.delay = 5;
  s.run();
  double binding = 0, band = 0, saturated = 0, candidates = 0, selected = 0, lifetime = 0;
  for (std::int64_t h = 0; h < 2; ++h) {
    for (std::int64_t i = 0; i < T; ++i) {
      const auto query = static_cast<std::size_t>(h * T + i);
      candidates += s.from[query] < document_of(s.starts, i, T).second;
      selected += s.to[query] > s.from[query];
      lifetime += s.to[query] - s.from[query];
      if (s.tau[query] == -kInfinity) continue;
      ++binding;
      band += s.band[query];
      for (std::int64_t j = document_of(s.starts, i, T).first; j <= i - s.a.delay; ++j) {
        saturated += s.z[static_cast<std::size_t>(h * T + j)] - 1 >= s.tau[query];
      }
    }
  }
  const auto stats = selection_stats(s.a);
  CHECK(stats.band_over_k == Approx(band / binding / 6).epsilon(1e-12));
  CHECK(stats.saturated_over_k == Approx(saturated / binding / 6).epsilon(1e-12));
  CHECK(stats.ever_selected == Approx(selected / candidates).epsilon(1e-12));
  CHECK(stats.mean_lifetime == Approx(lifetime / selected).epsilon(1e-12));
  CHECK(stats.saturated_over_k > 0);
  CHECK(stats.saturated_over_k <= 1);
  CHECK(stats.ever_selected < 1);

  Selection plain({1, 3, std::nan(""), 2, 2}, 1, 1);
  plain.a.k = 5;
  plain.run();
  const auto all = selection_stats(plain.a);
  CHECK(all.score_std == Approx(std::sqrt(0.5)));
  CHECK(all.ever_selected == 1);
  CHECK(all.mean_lifetime == 3);  // 5, 4, 3, 2, 1 queries
  CHECK(all.band_over_k == 0);
}
