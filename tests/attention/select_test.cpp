// The selection kernel against an oracle that sorts every prefix anew, and the streaming form against the batch.
#include "attention/kernels/select.h"

#include <array>
#include <cmath>
#include <vector>

#include "attention/attention.h"
#include "attention/score_cases.h"
#include "attention/selection_fixture.h"
#include "attention/sparsek.h"
#include "attention/streaming_selection.h"
#include "core/error.h"
#include "core/parallel_for.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// One query of a one-row selection, every claim of the ABI.
void check_query(const Selection& s, std::int64_t i) {
  const auto at = [](std::int64_t x) { return static_cast<std::size_t>(x); };
  const auto best = candidates_of(s, i);
  const auto m = static_cast<std::int64_t>(best.size());
  std::vector<char> member(at(s.a.T), 0), pooled(at(s.a.T), 0);
  const std::int64_t pool = s.a.pool == 0 ? m : s.a.pool * s.a.k;
  std::vector<double> z;
  for (std::int64_t r = 0; r < m; ++r) {
    member[at(best[at(r)].key)] = r < s.a.k;
    if (r < pool) {
      pooled[at(best[at(r)].key)] = 1;
      z.push_back(best[at(r)].z);
    }
    REQUIRE(s.z[at(best[at(r)].key)] == best[at(r)].z);
  }
  const double tau = m <= s.a.k ? -kInfinity : bisected_threshold(z, s.a.k);
  if (tau == -kInfinity) REQUIRE(s.tau[at(i)] == tau);
  else REQUIRE(std::abs(s.tau[at(i)] - tau) <= 1e-12 * std::max(1.0, std::abs(tau)));

  std::int64_t band = 0;
  for (std::int64_t j = 0; j < s.a.T; ++j) {
    REQUIRE((s.from[at(j)] <= i && i < s.to[at(j)]) == (member[at(j)] != 0));
    const bool in_band = s.band_from[at(j)] <= i && i < s.band_to[at(j)];
    band += in_band;
    if (!pooled[at(j)] || tau == -kInfinity) {
      REQUIRE(!in_band);
      continue;
    }
    const double above = s.z[at(j)] - tau;  // the oracle cannot tell the side of a kink within rounding
    if (std::abs(above) > 1e-11 && std::abs(above - 1) > 1e-11) REQUIRE(in_band == (above > 0 && above < 1));
  }
  REQUIRE(s.band[at(i)] == band);
}

void check_row(const Selection& s, std::int64_t stride = 1) {
  for (std::int64_t i = 0; i < s.a.T; i += stride) check_query(s, i);
  check_query(s, s.a.T - 1);
  for (std::int64_t i = 1; i < s.a.T; ++i) {
    const auto now = static_cast<std::size_t>(i);
    if (s.starts.empty() || s.starts[now] != i) REQUIRE(s.tau[now] >= s.tau[now - 1]);
  }
}

}  // namespace

// Scores j / unit, so that thresholds are fractions: decided in integers, while the selection adds rounded numbers.
// With unit = n (n + 1) / 2 and k = 1 the n best sum to 1 above the next one, which lies exactly at the threshold.
TEST_CASE("scores exactly at an end of the band are beyond it however the threshold was rounded") {
  constexpr std::int64_t T = 500;
  for (std::int64_t n = 5; n <= 25; ++n) {
    const std::int64_t k = 1, unit = n * (n + 1) / 2;
    Selection s(std::vector<double>(T, 0.0), 1, 1);
    s.a.k = k, s.a.slope = 1.0 / unit, s.a.pool = 0, s.a.delay = 0;
    s.run();
    std::vector<std::int32_t> wanted(T, 0);  // first query of which the key lies at or below the threshold
    for (std::int64_t i = k; i < T; ++i) {
      // The best w keys lie above tau = (sum + (saturated - k) unit) / band, in units of 1 / unit; w is the largest
      // with its last key above. No key is saturated before it is more than unit away from tau.
      std::int64_t above = 0;
      for (std::int64_t w = k; w <= i + 1; ++w) {
        std::int64_t saturated = 0, sum = w * i - w * (w - 1) / 2;
        const auto top = [&] { return i - saturated; };
        while (saturated < w && (top() - unit) * (w - saturated) >= sum + (saturated - k) * unit)
          sum -= top(), ++saturated;
        if (saturated == w || (i - w + 1) * (w - saturated) > sum + (saturated - k) * unit) above = w;
      }
      for (std::int64_t j = 0; j + above <= i; ++j) {
        if (wanted[static_cast<std::size_t>(j)] == 0)
          wanted[static_cast<std::size_t>(j)] = static_cast<std::int32_t>(i);
      }
    }
    int different = 0;
    for (std::size_t j = 0; j < wanted.size(); ++j) different += wanted[j] != 0 && s.band_to[j] != wanted[j];
    CAPTURE(n);
    CHECK(different == 0);
  }
}

TEST_CASE("selection equals a sort of every prefix") {
  std::uint64_t state = 1;
  const std::int64_t lengths[] = {1, 2, 3, 5, 17, 63, 64, 65, 100, 128, 129, 190, 300};
  for (const auto& kind : kScoreKinds) {
    for (std::int64_t T : lengths) {
      for (int trial = 0; trial < (T <= 17 ? 12 : 4); ++trial) {
        Selection s(make_scores(kind, T, draw(state, 1u << 20)), 1, 1, draw(state, 2) == 0 ? DType::f32 : DType::f64);
        s.a.k = 1 + static_cast<std::int64_t>(
                        draw(state, static_cast<std::uint64_t>(trial % 2 == 0 ? T : std::max<std::int64_t>(1, T / 8))));
        s.a.pool = std::array{0, 1, 2, 4}[draw(state, 4)];
        s.a.delay =
            static_cast<std::int64_t>(draw(state, static_cast<std::uint64_t>(trial % 3 == 0 ? T + 2 : T / 8 + 2)));
        s.a.slope = std::array{0.0, 1e-4, 1e-2}[draw(state, 3)];
        s.a.temperature = std::array{1.0, 0.5, 1.7}[draw(state, 3)];
        if (draw(state, 3) == 0) s.starts = make_documents(T, draw(state, 1u << 20));
        s.run();
        CAPTURE(kind, T, trial, s.a.k, s.a.pool, s.a.delay, s.a.slope, s.a.temperature, s.starts.size());
        check_row(s);
        CHECK(s.nan_count == 0);
      }
    }
  }
}

TEST_CASE("selection of every small case") {
  for (std::int64_t T = 1; T <= 9; ++T) {
    for (std::int64_t k = 1; k <= T; ++k) {
      for (std::int64_t delay = 0; delay <= T; ++delay) {
        for (const char* kind : {"normal", "two_values", "plateau"}) {
          for (std::int64_t pool : {0, 1, 2}) {
            Selection s(make_scores(kind, T, static_cast<std::uint64_t>(100 * T + 10 * k + delay)), 1, 1);
            s.a.k = k;
            s.a.delay = delay;
            s.a.pool = pool;
            s.run();
            CAPTURE(kind, T, k, delay, pool);
            check_row(s);
          }
        }
      }
    }
  }
}

TEST_CASE("long rows stay exact") {
  for (const char* kind : {"normal", "equal", "quantised", "increasing", "burst", "giant"}) {
    for (std::int64_t pool : {4, 0}) {
      Selection s(make_scores(kind, 4000, 11), 1, 1, DType::f32);
      s.a.k = 48;
      s.a.pool = pool;
      s.a.delay = 70;
      s.a.slope = pool == 0 ? 1e-4 : 0;
      s.run();
      CAPTURE(kind, pool);
      check_row(s, 97);
    }
  }
}

TEST_CASE("scores that are no numbers rank last and are counted") {
  auto scores = make_scores("normal", 60, 4);
  for (std::size_t j : {0u, 7u, 8u, 31u, 59u}) scores[j] = std::nan("");
  scores[3] = -kInfinity;
  scores[12] = kInfinity;
  scores[20] = -0.0;
  scores[21] = 0.0;
  for (DType dtype : {DType::f32, DType::f64}) {
    for (std::int64_t k : {1, 4, 20, 58}) {
      for (std::int64_t pool : {0, 2}) {
        Selection s(scores, 1, 1, dtype);
        s.a.k = k;
        s.a.pool = pool;
        s.a.slope = 1e-3;
        s.run();
        CAPTURE(k, pool);
        CHECK(s.nan_count == 5);
        for (double z : s.z) REQUIRE(std::isfinite(z));
        for (double tau : s.tau) REQUIRE((std::isfinite(tau) || tau == -kInfinity));
        if (dtype == DType::f32) continue;  // the oracle reads the fp64 scores
        for (std::int64_t i = 0; i < 60; ++i) {
          const auto best = candidates_of(s, i);
          for (std::size_t r = 0; r < best.size(); ++r) {
            const auto j = static_cast<std::size_t>(best[r].key);
            REQUIRE((s.from[j] <= i && i < s.to[j]) == (static_cast<std::int64_t>(r) < k));
          }
        }
        check_row(s);
      }
    }
  }
  Selection all(std::vector<double>(30, std::nan("")), 1, 1);
  all.a.k = 3;
  all.run();
  CHECK(all.nan_count == 30);
  check_row(all);  // all tied: the latest win
}

TEST_CASE("minus zero ties with zero") {
  Selection s({0.0, -0.0, 0.0, -0.0}, 1, 1);
  s.a.k = 2;
  s.run();
  CHECK(s.from == std::vector<std::int32_t>{0, 1, 2, 3});
  CHECK(s.to == std::vector<std::int32_t>{2, 3, 4, 4});
}

TEST_CASE("a key that is evicted never returns and a query has k members") {
  Selection s(make_scores("quantised", 500, 9), 1, 1);
  s.a.k = 13;
  s.a.delay = 20;
  s.run();
  for (std::int64_t i = 0; i < 500; ++i) {
    std::int64_t members = 0;
    for (std::size_t j = 0; j < 500; ++j) members += s.from[j] <= i && i < s.to[j];
    REQUIRE(members == std::clamp<std::int64_t>(i - 20 + 1, 0, 13));
  }
}

TEST_CASE("every candidate fits: all are members, no threshold") {
  Selection s(make_scores("wide", 40, 2), 1, 1);
  s.a.k = 30;
  s.a.delay = 10;
  s.run();
  for (std::int64_t j = 0; j < 40; ++j) {
    const auto at = static_cast<std::size_t>(j);
    CHECK(s.from[at] == std::min<std::int64_t>(j + 10, 40));
    CHECK(s.to[at] == 40);
    CHECK(s.tau[at] == -kInfinity);
    CHECK(s.band[at] == 0);
    CHECK(s.band_from[at] == s.band_to[at]);
  }
}

TEST_CASE("a packed document equals the same document alone") {
  const std::int64_t T = 257;
  auto scores = make_scores("quantised", T, 21);
  Selection packed(scores, 1, 1);
  packed.starts = make_documents(T, 4);
  packed.a.k = 5;
  packed.a.delay = 3;
  packed.a.slope = 1e-2;
  packed.run();
  int documents = 0;
  for (std::int64_t begin = 0, end; begin < T; begin = end, ++documents) {
    end = document_of(packed.starts, begin, T).second;
    Selection alone({scores.begin() + begin, scores.begin() + end}, 1, 1);
    alone.a.k = 5;
    alone.a.delay = 3;
    alone.a.slope = 1e-2;
    alone.run();
    for (std::int64_t t = begin; t < end; ++t) {
      const auto p = static_cast<std::size_t>(t), q = static_cast<std::size_t>(t - begin);
      REQUIRE(packed.tau[p] == alone.tau[q]);
      REQUIRE(packed.z[p] == alone.z[q]);
      REQUIRE(packed.band[p] == alone.band[q]);
      REQUIRE(packed.from[p] - begin == alone.from[q]);
      REQUIRE(packed.to[p] - begin == alone.to[q]);
      REQUIRE(packed.band_from[p] - begin == alone.band_from[q]);
      REQUIRE(packed.band_to[p] - begin == alone.band_to[q]);
    }
  }
  CHECK(documents > 4);
}

TEST_CASE("rows are independent and the number of threads does not matter") {
  const std::int64_t B = 2, H = 3, T = 150;
  std::vector<double> scores;
  Starts starts;
  for (std::uint64_t r = 0; r < 6; ++r) {
    const auto row = make_scores(kScoreKinds[r], T, r);
    scores.insert(scores.end(), row.begin(), row.end());
    if (r < 2) {
      const auto documents = make_documents(T, r);
      starts.insert(starts.end(), documents.begin(), documents.end());
    }
  }
  Selection s(scores, B, H);
  s.starts = starts;
  s.a.k = 7;
  s.a.delay = 4;
  const int threads = num_threads();
  set_num_threads(1);
  s.run();
  const Selection reference = s;
  for (int n : {2, 3, 5}) {
    set_num_threads(n);
    s.run();
    CHECK(s.same_as(reference));
  }
  set_num_threads(threads);
  for (std::int64_t r = 0; r < B * H; ++r) {
    Selection one({scores.begin() + r * T, scores.begin() + (r + 1) * T}, 1, 1);
    one.starts.assign(starts.begin() + r / H * T, starts.begin() + (r / H + 1) * T);
    one.a.k = 7;
    one.a.delay = 4;
    one.run();
    CHECK(std::equal(one.tau.begin(), one.tau.end(), s.tau.begin() + r * T));
    CHECK(std::equal(one.to.begin(), one.to.end(), s.to.begin() + r * T));
    CHECK(std::equal(one.band_to.begin(), one.band_to.end(), s.band_to.begin() + r * T));
  }
}

TEST_CASE("members without thresholds are the same") {
  Selection s(make_scores("integers", 200, 6), 1, 1);
  s.a.k = 9;
  s.a.delay = 5;
  s.run();
  Selection hard(s.scores, 1, 1);
  hard.a.k = 9;
  hard.a.delay = 5;
  hard.a.thresholds = false;
  hard.run();
  CHECK(hard.from == s.from);
  CHECK(hard.to == s.to);
}

TEST_CASE("streaming selection equals the batch") {
  std::uint64_t state = 50;
  for (const auto& kind : kScoreKinds) {
    for (int trial = 0; trial < 4; ++trial) {
      const auto T = static_cast<std::int64_t>(1 + draw(state, 400));
      Selection s(make_scores(kind, T, draw(state, 1u << 20)), 1, 1);
      if (trial == 3 && T > 5) s.scores[static_cast<std::size_t>(T / 2)] = std::nan("");
      s.a.k = 1 + static_cast<std::int64_t>(draw(state, 40));
      s.a.pool = std::array{0, 1, 2, 4}[trial];
      s.a.slope = trial % 2 == 0 ? 0 : 1e-3;
      s.a.temperature = trial == 2 ? 0.7 : 1;
      s.run();  // delay 0: the threshold of query i is that of prefix i
      StreamingSelection stream(s.a.k, s.a.pool, s.a.slope, s.a.temperature, true);
      for (int round = 0; round < 2; ++round) {
        stream.reset();
        for (std::int64_t i = 0; i < T; ++i) {
          const auto at = static_cast<std::size_t>(i);
          const std::int64_t held = stream.size();
          const auto offer = stream.offer(s.scores[at], i);
          REQUIRE((offer.slot >= 0) == (s.to[at] > i));
          if (offer.evicted >= 0) REQUIRE(s.to[static_cast<std::size_t>(offer.evicted)] == i);
          REQUIRE(stream.size() == std::min(i + 1, s.a.k));
          REQUIRE((offer.slot < 0 || offer.evicted >= 0) == (held == s.a.k));
          for (std::int64_t slot = 0; slot < stream.size(); ++slot) {
            const auto j = static_cast<std::size_t>(stream.key(slot));
            REQUIRE((s.from[j] <= i && i < s.to[j]));
            REQUIRE(stream.z(slot) == s.z[j]);
            REQUIRE(std::abs(stream.gate(slot) - std::clamp(s.z[j] - s.tau[at], 0.0, 1.0)) <= 1e-12);
          }
          if (s.tau[at] == -kInfinity) REQUIRE(stream.tau() == -kInfinity);
          else REQUIRE(std::abs(stream.tau() - s.tau[at]) <= 1e-12 * std::max(1.0, std::abs(s.tau[at])));
          if (s.a.pool > 0) REQUIRE(stream.scalars() <= s.a.pool * s.a.k);
        }
      }
    }
  }
}

TEST_CASE("a member keeps its slot until it is evicted") {
  StreamingSelection stream(2, 4, 0, 1, false);
  CHECK(stream.offer(1.0, 0).slot == 0);
  CHECK(stream.offer(3.0, 1).slot == 1);
  CHECK(stream.offer(0.5, 2).slot == -1);
  const auto third = stream.offer(2.0, 3, 103);
  CHECK(third.slot == 0);
  CHECK(third.evicted == 0);
  CHECK(stream.key(0) == 103);
  CHECK(stream.key(1) == 1);
  CHECK(stream.tau() == -kInfinity);  // not asked for
}

TEST_CASE("empty shapes and nonsense") {
  Selection none({}, 0, 3);
  none.run();
  CHECK(none.nan_count == 0);
  CHECK(selection_stats(none.a).ever_selected == 0);

  const auto refused = [](auto change) {
    Selection s(make_scores("normal", 12, 1), 1, 1);
    change(s);
    try {
      s.run();
    } catch (const Error& e) { return std::string(e.what()).find("[sparsek]") == 0; }
    return false;
  };
  CHECK(!refused([](Selection&) {}));
  CHECK(refused([](Selection& s) { s.a.k = 0; }));
  CHECK(refused([](Selection& s) { s.a.pool = -1; }));
  CHECK(refused([](Selection& s) { s.a.delay = -1; }));
  CHECK(refused([](Selection& s) { s.a.temperature = 0; }));
  CHECK(refused([](Selection& s) { s.a.temperature = std::nan(""); }));
  CHECK(refused([](Selection& s) { s.a.slope = kInfinity; }));
  CHECK(refused([](Selection& s) { s.a.dtype = DType::bf16; }));
  CHECK(refused([](Selection& s) { s.starts = Starts(12, 3); }));
  CHECK(!refused([](Selection& s) { s.a.delay = std::numeric_limits<std::int64_t>::max(); }));
  CHECK(!refused([](Selection& s) { s.a.k = std::numeric_limits<std::int64_t>::max() / 2; }));
  CHECK_THROWS_AS(StreamingSelection(0, 4, 0, 1, true), Error);
  CHECK_THROWS_AS(StreamingSelection(4, 4, 0, 0, true), Error);
  CHECK_THROWS_AS(StreamingSelection(4, -1, 0, 1, true), Error);
}
