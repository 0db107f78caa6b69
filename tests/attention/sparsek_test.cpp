// The SparseK operator: three forms against each other and against bisection, its properties, its vector-Jacobian
// product.
#include "attention/sparsek.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "attention/score_cases.h"
#include "core/error.h"
#include "core/rng.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<double> sloped(std::vector<double> s, double slope) {
  for (std::size_t j = 0; j < s.size(); ++j) s[j] += slope * static_cast<double>(j);
  return s;
}

// Largest difference of p over all scores, and of tau. p does not see the choice of tau on a plateau.
struct Difference {
  double p = 0, tau = 0;
  void take(std::span<const double> z, double a, double b) {
    for (double v : z) p = std::max(p, std::abs(std::clamp(v - a, 0.0, 1.0) - std::clamp(v - b, 0.0, 1.0)));
    if (a != b) tau = std::max(tau, std::abs(a - b));  // -inf equals -inf
  }
};

}  // namespace

TEST_CASE("closed form agrees with bisection for every k") {
  Difference worst;
  for (const auto& kind : kScoreKinds) {
    for (double slope : {0.0, 1e-4, 1e-2}) {
      for (std::int64_t n : {1, 2, 3, 5, 8, 13, 40}) {
        const auto z = sloped(make_scores(kind, n, static_cast<std::uint64_t>(n)), slope);
        for (std::int64_t k = 1; k <= n; ++k) worst.take(z, sparsek_threshold(z, k), bisected_threshold(z, k));
      }
    }
  }
  CHECK(worst.p <= 1e-12);
  CHECK(worst.tau <= 1e-12);
}

TEST_CASE("three forms agree on every prefix, exact and pooled") {
  for (const auto& kind : kScoreKinds) {
    Difference heaps, walk;
    std::uint64_t seed = 0;
    for (double slope : {0.0, 1e-4, 1e-2}) {
      for (std::int64_t n : {1, 2, 3, 7, 20, 33, 64, 150}) {
        const auto z = sloped(make_scores(kind, n, ++seed), slope);
        for (std::int64_t k = 1; k <= n; k = n <= 20 ? k + 1 : k * 2) {
          for (std::int64_t pool : {std::int64_t{0}, k, k + 1, 2 * k, 4 * k}) {
            IncrementalSparseK incremental(k, pool);
            std::vector<double> tau(z.size());
            sparsek_prefix_thresholds(z, k, pool, n % 3 == 0 ? 64 : (n % 3 == 1 ? 1 : 5), tau);
            for (std::int64_t i = 0; i < n; ++i) {
              const auto now = static_cast<std::size_t>(i);
              incremental.add(z[now]);
              const auto seen = largest({z.begin(), z.begin() + i + 1}, pool);
              const double closed = sparsek_threshold(seen, k);
              heaps.take(seen, incremental.tau(), closed);
              walk.take(seen, tau[now], closed);
              REQUIRE((pool == 0 || incremental.kept() <= pool));
              if (i > 0) REQUIRE(tau[now] >= tau[now - 1]);
            }
          }
        }
      }
    }
    INFO(kind);
    CHECK(heaps.p <= 1e-12);
    CHECK(heaps.tau <= 1e-12);
    CHECK(walk.p <= 1e-12);
    CHECK(walk.tau <= 1e-12);
  }
}

TEST_CASE("rounding does not build up over long streams") {
  const std::int64_t n = 30000, k = 64;
  for (const auto& [kind, slope] :
       {std::pair<std::string, double>{"normal", 0}, {"narrow", 1e-2}, {"equal", 0}, {"giant", 1e-4}}) {
    const auto z = sloped(make_scores(kind, n, 5), slope);
    for (std::int64_t pool : {std::int64_t{0}, 4 * k}) {
      IncrementalSparseK incremental(k, pool);
      std::vector<double> tau(z.size());
      sparsek_prefix_thresholds(z, k, pool, 64, tau);
      Difference heaps, walk;
      for (std::int64_t i = 0; i < n; ++i) {
        incremental.add(z[static_cast<std::size_t>(i)]);
        if (i % 2999 != 0 && i != n - 1) continue;
        const auto seen = largest({z.begin(), z.begin() + i + 1}, pool);
        const double closed = sparsek_threshold(seen, k);
        heaps.take(seen, incremental.tau(), closed);
        walk.take(seen, tau[static_cast<std::size_t>(i)], closed);
      }
      INFO(kind << " pool " << pool);
      CHECK(heaps.tau <= 1e-12);
      CHECK(walk.tau <= 1e-12);
    }
  }
}

TEST_CASE("p is the projection on the capped simplex") {
  std::uint64_t seed = 100;
  for (const auto& kind : kScoreKinds) {
    for (std::int64_t n : {1, 2, 9, 40}) {
      for (std::int64_t k = 1; k <= n; ++k) {
        const auto z = make_scores(kind, n, ++seed);
        std::vector<double> p(z.size());
        const double tau = sparsek(z, k, p);
        REQUIRE(std::isfinite(tau));
        for (double v : p) REQUIRE((v >= 0 && v <= 1));
        REQUIRE(std::abs(std::accumulate(p.begin(), p.end(), 0.0) - static_cast<double>(k)) <= 1e-11);
        // Variational inequality: (z - p) . (q - p) <= 0 for every q of the set; its vertices suffice, here random
        // ones.
        const Philox random{seed, 1};
        for (std::uint64_t trial = 0; trial < 10; ++trial) {
          std::vector<std::pair<double, std::size_t>> shuffled(z.size());
          for (std::size_t j = 0; j < z.size(); ++j) shuffled[j] = {random.uniform(trial * z.size() + j), j};
          std::sort(shuffled.begin(), shuffled.end());
          double inner = 0;
          for (std::size_t rank = 0; rank < z.size(); ++rank) {
            const std::size_t j = shuffled[rank].second;
            inner += (z[j] - p[j]) * ((static_cast<std::int64_t>(rank) < k ? 1.0 : 0.0) - p[j]);
          }
          REQUIRE(inner <= 1e-9);
        }
      }
    }
  }
}

TEST_CASE("k scores or fewer are all kept") {
  const std::vector<double> z = {3, -1, 0.5};
  std::vector<double> p(3);
  CHECK(sparsek(z, 3, p) == -2);  // z_min - 1
  CHECK(p == std::vector<double>{1, 1, 1});
  CHECK(sparsek(z, 4, p) == -kInfinity);
  CHECK(p == std::vector<double>{1, 1, 1});
  IncrementalSparseK incremental(3);
  for (double v : z) {
    CHECK(incremental.tau() == -kInfinity);
    incremental.add(v);
  }
  CHECK(incremental.tau() == -2);
  incremental.clear();
  CHECK(incremental.tau() == -kInfinity);
  CHECK(incremental.kept() == 0);
}

TEST_CASE("the plateau takes the upper end of tau") {
  const std::vector<double> z = {5, 0, 3.5, 1};  // gap 2.5 below the second score
  CHECK(sparsek_threshold(z, 2) == 2.5);
  std::vector<double> dz(4);
  sparsek_vjp(z, 2.5, std::vector<double>{1, 2, 3, 4}, dz);
  CHECK(dz == std::vector<double>(4, 0.0));  // empty band: no gradient at all
}

TEST_CASE("shifting all scores shifts tau alone") {
  const auto z = make_scores("quantised", 50, 3);
  auto moved = z;
  for (double& v : moved) v += 8;
  std::vector<double> p(z.size()), q(z.size());
  for (std::int64_t k = 1; k < 50; ++k) {
    const double tau = sparsek(z, k, p);
    CHECK(std::abs(sparsek(moved, k, q) - 8 - tau) <= 1e-14);
    for (std::size_t j = 0; j < p.size(); ++j) REQUIRE(std::abs(p[j] - q[j]) <= 1e-14);
  }
}

TEST_CASE("vector-Jacobian product against finite differences") {
  constexpr double kStep = 1e-5;  // p is piecewise linear: the central difference is exact inside a piece
  int compared = 0;
  double worst = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const auto n = static_cast<std::int64_t>(2 + seed % 30);
    const std::int64_t k = 1 + static_cast<std::int64_t>(seed / 7) % (n - 1);
    auto z = make_scores(seed % 3 == 0 ? "narrow" : (seed % 3 == 1 ? "normal" : "wide"), n, seed);
    const double tau = sparsek_threshold(z, k);
    double margin = kInfinity;
    for (double v : z) margin = std::min({margin, std::abs(v - tau), std::abs(v - 1 - tau)});
    if (margin < 4 * kStep) continue;  // a kink, or the edge of a plateau
    std::vector<double> g(z.size()), dz(z.size()), p(z.size());
    for (std::size_t j = 0; j < g.size(); ++j) g[j] = Philox{seed, 9}.normal(j);
    sparsek_vjp(z, tau, g, dz);
    CHECK(std::abs(std::accumulate(dz.begin(), dz.end(), 0.0)) <= 1e-12);
    for (std::size_t j = 0; j < z.size(); ++j) {
      const double keep = z[j];
      double ends[2];
      for (int side = 0; side < 2; ++side) {
        z[j] = keep + (side == 0 ? -kStep : kStep);
        sparsek(z, k, p);
        ends[side] = std::inner_product(p.begin(), p.end(), g.begin(), 0.0);
      }
      z[j] = keep;
      worst = std::max(worst, std::abs((ends[1] - ends[0]) / (2 * kStep) - dz[j]) / std::max(1.0, std::abs(dz[j])));
    }
    ++compared;
  }
  CHECK(compared >= 100);
  CHECK(worst <= 1e-7);
}

TEST_CASE("the operator refuses what makes no sense") {
  std::vector<double> z = {1, 2, 3}, small(2);
  CHECK_THROWS_AS(sparsek_threshold(z, 0), Error);
  CHECK_THROWS_AS(sparsek(z, 1, small), Error);
  CHECK_THROWS_AS(sparsek_vjp(z, 0, z, small), Error);
  CHECK_THROWS_AS(IncrementalSparseK(0), Error);
  CHECK_THROWS_AS(IncrementalSparseK(4, 3), Error);
  CHECK_THROWS_AS(sparsek_prefix_thresholds(z, 1, 0, 0, z), Error);
  CHECK_THROWS_AS(sparsek_prefix_thresholds(z, 1, 0, 1, small), Error);
}
