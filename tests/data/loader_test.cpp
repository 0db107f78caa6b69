// Order of samples, training batches, prefetching, validation blocks.
#include "data/loader.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <set>
#include <thread>

#include "core/rng.h"
#include "data/validation.h"
#include "helpers.h"

using namespace sieve;
using namespace sieve::test;

namespace {

std::shared_ptr<const TokenSource> counting(std::int64_t n, std::vector<std::int64_t> starts = {},
                                            const std::string& name = "memory") {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  return std::make_shared<MemoryTokens>(name, std::move(ids), std::move(starts));
}

std::shared_ptr<const TrainingSet> training(std::int64_t tokens, std::int64_t seq_len, std::uint64_t seed = 1) {
  return std::make_shared<TrainingSet>(std::vector<TrainingSet::Source>{{counting(tokens), {}}}, seq_len, seed, false);
}

std::vector<std::int32_t> values(const Tensor& t) {
  const auto s = t.span<std::int32_t>();
  return {s.begin(), s.end()};
}

// Fails from token `limit` on, after a while is slow.
class Broken final : public TokenSource {
 public:
  explicit Broken(std::int64_t limit) : limit_(limit) {}
  std::string name() const override { return "broken"; }
  std::int64_t tokens() const override { return 1000; }
  std::int64_t documents() const override { return 1; }
  void read(std::int64_t, std::span<std::int32_t> out) const override {
    if (reads_++ >= limit_) fail(Exit::data, "broken", "read ", limit_);
    std::fill(out.begin(), out.end(), 7);
  }
  void document_starts(std::int64_t, std::int64_t, std::vector<std::int64_t>&) const override {}

 private:
  std::int64_t limit_;
  mutable std::atomic<std::int64_t> reads_{0};
};

}  // namespace

TEST_CASE("permutation is a bijection", "[sampler]") {
  for (std::int64_t n = 1; n <= 2000; ++n) {
    const Permutation p(n, static_cast<std::uint64_t>(n) * 77);
    std::vector<char> seen(static_cast<std::size_t>(n), 0);
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t v = p(i);
      if (v < 0 || v >= n || seen[static_cast<std::size_t>(v)]++) FAIL("n = " << n << ", i = " << i << ", value " << v);
    }
  }
  for (const std::int64_t n : {(std::int64_t{1} << 20) - 1, (std::int64_t{1} << 20) + 1, std::int64_t{1} << 20}) {
    const Permutation p(n, 5);
    std::vector<char> seen(static_cast<std::size_t>(n), 0);
    for (std::int64_t i = 0; i < n; ++i) ++seen[static_cast<std::size_t>(p(i))];
    CHECK(std::all_of(seen.begin(), seen.end(), [](char c) { return c == 1; }));
  }
  // Too large to walk through: no collision and no value outside among some.
  for (const std::int64_t n : {std::int64_t{1} << 40, (std::int64_t{1} << 62) + 12345}) {
    const Permutation p(n, 9);
    std::set<std::int64_t> seen;
    for (std::int64_t i = 0; i < 20000; ++i) {
      const std::int64_t v = p(i < 10000 ? i : n - 1 - (i - 10000));
      REQUIRE((v >= 0 && v < n));
      seen.insert(v);
    }
    CHECK(seen.size() == 20000);
  }
  CHECK_THROWS_AS(Permutation(5, 1)(5), Error);
  CHECK_THROWS_AS(Permutation(0, 1), Error);
}

TEST_CASE("permutation looks random and depends on its key", "[sampler]") {
  // Every value equally often at every place, over keys: chi-square of 8 x 8 cells, 49 degrees of freedom.
  constexpr int n = 8, keys = 8000;
  double count[n][n] = {};
  for (int k = 0; k < keys; ++k) {
    const Permutation p(n, stream_of(3, k));
    for (int i = 0; i < n; ++i) count[i][p(i)] += 1;
  }
  double chi = 0;
  for (auto& row : count) {
    for (const double c : row) chi += (c - keys / n) * (c - keys / n) / (keys / n);
  }
  CHECK(chi < 95);  // 1e-4 above
  CHECK(chi > 20);
  // Neighbours do not stay neighbours.
  const Permutation p(100000, 3);
  int near = 0;
  for (std::int64_t i = 0; i + 1 < 100000; ++i) near += std::abs(p(i) - p(i + 1)) < 100;
  CHECK(near < 400);  // 200 expected
}

TEST_CASE("sampler without weights: every sequence once per epoch", "[sampler]") {
  const Sampler sampler({{"a", 10, {}}, {"b", 1, {}}, {"c", 33, {}}}, 42);
  REQUIRE(sampler.epoch_samples() == 44);
  std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> orders;
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::set<std::pair<std::int64_t, std::int64_t>> seen;
    auto& order = orders.emplace_back();
    for (std::int64_t i = 0; i < 44; ++i) {
      const Sample s = sampler(epoch * 44 + i);
      CHECK(s.epoch == epoch);
      CHECK(s.sequence < sampler.sources()[static_cast<std::size_t>(s.source)].sequences);
      seen.insert({s.source, s.sequence});
      order.push_back({s.source, s.sequence});
    }
    CHECK(seen.size() == 44);
  }
  CHECK(orders[0] != orders[1]);
  CHECK(orders[1] != orders[2]);
  const Sampler other({{"a", 10, {}}, {"b", 1, {}}, {"c", 33, {}}}, 43);
  bool differs = false;
  for (std::int64_t i = 0; i < 44; ++i) differs = differs || other(i).sequence != sampler(i).sequence;
  CHECK(differs);
}

TEST_CASE("sampler with weights: shares, own epochs, pure", "[sampler]") {
  const std::vector<SampledSource> sources = {{"a", 7, 0.5}, {"b", 100, 3.0}, {"c", 13, 0.25}, {"d", 5, 1.25}};
  const Sampler sampler(sources, 1);
  std::vector<std::int64_t> count(4, 0);
  std::vector<std::vector<std::int64_t>> drawn(4);
  for (std::int64_t i = 0; i < 20000; ++i) {
    const Sample s = sampler(i);
    const auto d = static_cast<std::size_t>(s.source);
    // Own index = number of earlier samples of the source, so its epoch counts its own sequences.
    CHECK(s.epoch == count[d] / sources[d].sequences);
    drawn[d].push_back(s.sequence);
    ++count[d];
    for (std::size_t k = 0; k < 4; ++k) {
      const double ideal = *sources[k].weight / 5.0 * static_cast<double>(i + 1);
      if (std::abs(static_cast<double>(count[k]) - ideal) > static_cast<double>(k) + 1)
        FAIL("source " << k << " at " << i);
    }
  }
  for (std::size_t d = 0; d < 4; ++d) {  // each epoch of a source holds every sequence once, in an order of its own
    const auto n = static_cast<std::size_t>(sources[d].sequences);
    const auto epoch = [&](std::size_t e) {
      const auto first = drawn[d].begin() + static_cast<std::ptrdiff_t>(e * n);
      return std::vector<std::int64_t>(first, first + static_cast<std::ptrdiff_t>(n));
    };
    std::set<std::vector<std::int64_t>> orders;
    const std::size_t epochs = drawn[d].size() / n;
    for (std::size_t e = 0; e < epochs; ++e) {
      const auto order = epoch(e);
      CHECK(std::set<std::int64_t>(order.begin(), order.end()).size() == n);
      orders.insert(order);
    }
    CHECK(orders.size() > std::min<std::size_t>(epochs, 120) / 2);  // 5 sequences have 120 orders
  }
  // Far out, and asked in any order, the answer is the same.
  const Sample far = sampler(std::int64_t{1} << 50);
  CHECK(sampler(std::int64_t{1} << 50).sequence == far.sequence);
  CHECK(far.sequence < sources[static_cast<std::size_t>(far.source)].sequences);
}

TEST_CASE("sampler errors", "[sampler][errors]") {
  check_error(Exit::config, {"1 of 2", "weight"}, [] { Sampler({{"a", 1, 0.5}, {"b", 1, {}}}, 1); });
  check_error(Exit::config, {"b", "above 0"}, [] { Sampler({{"a", 1, 0.5}, {"b", 1, -1.0}}, 1); });
  check_error(Exit::config, {"too far"}, [] { Sampler({{"a", 1, 1e-12}, {"b", 1, 1.0}}, 1); });
  check_error(Exit::config, {"too far"}, [] { Sampler({{"a", 1, 1.0}, {"b", 1, 1e-12}}, 1); });
  check_error(Exit::data, {"b", "shorter than one sequence"}, [] { Sampler({{"a", 1, {}}, {"b", 0, {}}}, 1); });
  check_error(Exit::data, {"short.txt", "8 tokens", "9", "seq_len"}, [] {
    TrainingSet({{counting(8, {}, "short.txt"), {}}}, 8, 1, false);
  });
  CHECK(training(9, 8)->sampler().epoch_samples() == 1);
}

TEST_CASE("micro-batches: targets are the next tokens", "[loader]") {
  const auto set = training(101, 10);
  REQUIRE(set->sampler().epoch_samples() == 10);
  std::set<std::int32_t> firsts;
  for (std::int64_t m = 0; m < 5; ++m) {
    const Batch b = set->micro_batch(m, 2);
    CHECK(b.index == m);
    CHECK(b.target_count == 20);
    CHECK_FALSE(b.document_starts.defined());
    const auto tokens = values(b.tokens), targets = values(b.targets);
    for (std::size_t i = 0; i < tokens.size(); ++i) CHECK(targets[i] == tokens[i] + 1);
    for (const std::size_t row : {0u, 1u}) {
      CHECK(tokens[row * 10] % 10 == 0);
      firsts.insert(tokens[row * 10]);
    }
  }
  CHECK(firsts.size() == 10);  // one epoch
}

TEST_CASE("the same order on 1, 2 and 4 ranks, from any step on", "[loader]") {
  const auto set = training(4001, 8);
  const std::int64_t steps = 6, per_step = 8, rows = 3;
  std::vector<std::vector<std::int32_t>> expected;
  for (std::int64_t m = 0; m < steps * per_step; ++m) expected.push_back(values(set->micro_batch(m, rows).tokens));
  for (const int world : {1, 2, 4}) {
    for (const std::int64_t first : {0, 4}) {
      for (int rank = 0; rank < world; ++rank) {
        const MicroBatchRange range{per_step, rank, world};
        Loader loader(set, rows, range, first, rank % 3);  // with and without prefetch
        for (std::int64_t step = first; step < steps; ++step) {
          for (std::int64_t i = 0; i < range.per_rank(); ++i) {
            const Batch b = loader.next();
            CHECK(b.index == step * per_step + rank * range.per_rank() + i);
            CHECK(values(b.tokens) == expected[static_cast<std::size_t>(b.index)]);
          }
        }
      }
    }
  }
  CHECK_THROWS_AS(Loader(set, 1, MicroBatchRange{3, 0, 2}, 0, 1), Error);  // 3 micro-batches for 2 ranks
}

TEST_CASE("document starts follow the documents", "[loader]") {
  // Documents [0, 3), [3, 4), [4, 12), [12, 30)
  const auto source = counting(30, {0, 3, 4, 12});
  const TrainingSet set({{source, {}}}, 5, 3, true);
  const std::vector<std::int32_t> expected[5] = {
      {0, 0, 0, 3, 4}, {0, 0, 0, 0, 0}, {0, 0, 2, 2, 2}, {0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}};
  for (std::int64_t m = 0; m < 5; ++m) {
    const Batch b = set.micro_batch(m, 1);
    const auto& starts = expected[values(b.tokens)[0] / 5];
    const bool one_document = starts.back() == 0;
    REQUIRE(b.document_starts.defined() != one_document);  // a row of one document needs no mask
    if (!one_document) CHECK(values(b.document_starts) == starts);
  }
}

TEST_CASE("one row of several documents keeps the mask of its whole batch", "[loader]") {
  const TrainingSet set({{counting(30, {0, 3, 4, 12}), {}}}, 5, 3, true);
  const std::vector<std::int32_t> expected[5] = {
      {0, 0, 0, 3, 4}, {0, 0, 0, 0, 0}, {0, 0, 2, 2, 2}, {0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}};
  const Batch b = set.micro_batch(0, 5);  // an epoch
  REQUIRE(b.document_starts.defined());
  const auto tokens = values(b.tokens), starts = values(b.document_starts);
  for (std::ptrdiff_t row = 0; row < 5; ++row) {
    const auto first = starts.begin() + 5 * row;
    CHECK(std::vector<std::int32_t>(first, first + 5) == expected[tokens[static_cast<std::size_t>(5 * row)] / 5]);
  }
}

TEST_CASE("errors of the prefetching thread reach next(), after what was ready", "[loader][threads]") {
  for (const int prefetch : {0, 1, 4}) {
    const auto set = std::make_shared<TrainingSet>(std::vector<TrainingSet::Source>{{std::make_shared<Broken>(3), {}}},
                                                   10, 1, false);
    Loader loader(set, 1, {}, 0, prefetch);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // the thread has failed by now
    for (int i = 0; i < 3; ++i) CHECK(values(loader.next().tokens)[0] == 7);
    check_error(Exit::data, {"broken", "read 3"}, [&] { loader.next(); });
    check_error(Exit::data, {"broken", "read 3"}, [&] { loader.next(); });
  }
}

TEST_CASE("loaders under load: many at once, closed at any moment", "[loader][threads]") {
  const auto set = training(20001, 20);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int k = 0; k < 4; ++k) {
    threads.emplace_back([&, k] {
      for (int round = 0; round < 25; ++round) {
        Loader loader(set, 4, MicroBatchRange{4, k, 4}, round, 1 + round % 3);
        for (int i = 0; i < round % 7; ++i) {
          const Batch b = loader.next();
          if (b.index != (round + i) * 4 + k || values(b.tokens) != values(set->micro_batch(b.index, 4).tokens))
            ++wrong;
        }
      }  // destroyed while the thread works or waits
    });
  }
  for (auto& t : threads) t.join();
  CHECK(wrong == 0);

  Loader loader(set, 4, {}, 0, 3);
  for (int i = 0; i < 50; ++i) loader.next();
  CHECK(loader.stats().batches == 50);
  CHECK(loader.stats().build_seconds > 0);
  CHECK(loader.stats().wait_seconds >= 0);
}

TEST_CASE("validation: every token but the first is a target once, in order", "[validation]") {
  for (const std::int64_t n : {2, 9, 10, 11, 12, 101, 130}) {
    for (const std::int64_t rows : {1, 3, 8}) {
      CAPTURE(n, rows);
      const ValidationSet set(counting(n), 10, rows, false);
      CHECK(set.targets() == n - 1);
      std::vector<std::int32_t> seen;
      std::int64_t count = 0;
      for (std::int64_t b = 0; b < set.blocks(); ++b) {
        const Batch batch = set.block(b);
        CHECK(batch.tokens.size(0) <= rows);
        const auto tokens = values(batch.tokens), targets = values(batch.targets);
        for (std::size_t i = 0; i < targets.size(); ++i) {
          if (targets[i] < 0) continue;
          CHECK(targets[i] == tokens[i] + 1);
          seen.push_back(targets[i]);
        }
        count += batch.target_count;
      }
      std::vector<std::int32_t> expected(static_cast<std::size_t>(n - 1));
      std::iota(expected.begin(), expected.end(), 1);
      CHECK(seen == expected);
      CHECK(count == n - 1);
    }
  }
}

TEST_CASE("validation: limit, document starts, errors", "[validation]") {
  const ValidationSet limited(counting(100), 10, 2, false, 25);
  CHECK(limited.targets() == 25);
  CHECK(limited.blocks() == 2);
  const Batch last = limited.block(1);
  CHECK(last.target_count == 5);
  CHECK(values(last.targets) == std::vector<std::int32_t>{21, 22, 23, 24, 25, -1, -1, -1, -1, -1});
  CHECK(ValidationSet(counting(100), 10, 2, false, 1000).targets() == 99);

  const ValidationSet masked(counting(12, {0, 2, 7, 11}), 6, 2, true);
  CHECK(values(masked.block(0).document_starts) == std::vector<std::int32_t>{0, 0, 2, 2, 2, 2, 0, 1, 1, 1, 1, 1});
  check_error(Exit::data, {"tiny", "1 tokens", "two"}, [] { ValidationSet(counting(1, {}, "tiny"), 10, 1, false); });
  CHECK_THROWS_AS(masked.block(1), Error);
}
