// The shape of the reduction tree, checked as text against its definition, and its bits on many ranks.
#include "dist/tree.h"

#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "dist/thread_communicator.h"
#include "support/catch.h"

using namespace sieve;
using sieve::testing::run_ranks;

namespace {

// The definition in dist/tree.h, literally.
std::string tree_text(std::int64_t begin, std::int64_t end) {
  const std::int64_t n = end - begin;
  if (n == 1) return std::to_string(begin);
  if (n % 2 == 0) return cat("(", tree_text(begin, begin + n / 2), "+", tree_text(begin + n / 2, end), ")");
  std::string out = std::to_string(begin);
  for (std::int64_t i = begin + 1; i < end; ++i) out = cat("(", out, "+", i, ")");
  return out;
}

// What tree_step makes of leaves begin, begin + 1, ...; also counts the slots in use.
std::string slots_text(std::int64_t begin, std::int64_t leaves) {
  std::vector<std::string> slots(static_cast<std::size_t>(tree_slots(leaves)));
  for (std::int64_t j = 0; j < leaves; ++j) {
    const TreeStep step = tree_step(leaves, j);
    std::string value = std::to_string(begin + j);
    for (int s = 0; s < step.source_count; ++s)
      value = cat("(", slots.at(static_cast<std::size_t>(step.sources[s])), "+", value, ")");
    slots.at(static_cast<std::size_t>(step.dest)) = value;
  }
  return slots[0];
}

std::vector<float> random_leaf(std::int64_t index, std::int64_t numel) {
  const Tensor t = random_normal({numel}, 0, 1, 17, static_cast<std::uint64_t>(index));
  return {t.data<float>(), t.data<float>() + numel};
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.nbytes()) == 0;
}

// The sum of `leaves` random leaves over `ranks` ranks; checks that all ranks hold the same bits.
Tensor reduced(int ranks, std::int64_t leaves, std::int64_t numel) {
  std::vector<Tensor> results(static_cast<std::size_t>(ranks));
  run_ranks(ranks, [&](Communicator& comm) {
    const std::int64_t mine = leaves / ranks;
    TreeAccumulator sum(mine);
    for (std::int64_t j = 0; j < mine; ++j) {
      const auto leaf = random_leaf(comm.rank() * mine + j, numel);
      sum.add(from_values(std::span<const float>(leaf), {numel}));
    }
    Tensor total = sum.result();
    tree_all_reduce(comm, total, "test");
    results[static_cast<std::size_t>(comm.rank())] = total;
  });
  for (const Tensor& r : results) REQUIRE(same_bits(r, results[0]));
  return results[0];
}

}  // namespace

TEST_CASE("tree steps follow the definition for every number of leaves") {
  for (std::int64_t n = 1; n <= 130; ++n) {
    CAPTURE(n);
    REQUIRE(slots_text(0, n) == tree_text(0, n));
  }
  REQUIRE(slots_text(0, 1536) == tree_text(0, 1536));
}

TEST_CASE("the parts of a power of two of ranks are subtrees") {
  for (std::int64_t n : {1, 2, 3, 4, 5, 6, 8, 12, 24, 40, 64}) {
    for (std::int64_t ranks : {2, 4, 8}) {
      CAPTURE(n, ranks);
      std::vector<std::string> parts;
      for (std::int64_t r = 0; r < ranks; ++r) parts.push_back(slots_text(r * n, n));
      while (parts.size() > 1) {
        for (std::size_t i = 0; i < parts.size() / 2; ++i)
          parts[i] = cat("(", parts[2 * i], "+", parts[2 * i + 1], ")");
        parts.resize(parts.size() / 2);
      }
      REQUIRE(parts[0] == tree_text(0, n * ranks));
    }
  }
}

TEST_CASE("a step holds at most log2 buffers") {
  REQUIRE(tree_slots(1) == 1);
  REQUIRE(tree_slots(2) == 1);
  REQUIRE(tree_slots(3) == 1);
  REQUIRE(tree_slots(4) == 2);
  REQUIRE(tree_slots(6) == 2);
  REQUIRE(tree_slots(8) == 3);
  REQUIRE(tree_slots(1024) == 10);
  REQUIRE_THROWS_AS(tree_slots(0), Error);
  REQUIRE_THROWS_AS(tree_step(4, 4), Error);
}

TEST_CASE("the same bits for 1, 2, 4 and 8 ranks and every split of the step") {
  for (std::int64_t leaves : {8, 24}) {
    for (std::int64_t numel : {1, 7, 8192, 8193, 50001}) {  // both algorithms, odd halves
      CAPTURE(leaves, numel);
      const Tensor one = reduced(1, leaves, numel);
      for (int ranks : {2, 4, 8}) REQUIRE(same_bits(reduced(ranks, leaves, numel), one));
    }
  }
}

TEST_CASE("other numbers of ranks: every rank agrees, runs repeat, values are right") {
  for (int ranks : {3, 5, 6, 7}) {
    for (std::int64_t numel : {5, 20000}) {
      CAPTURE(ranks, numel);
      const Tensor a = reduced(ranks, 2 * ranks, numel), b = reduced(ranks, 2 * ranks, numel);
      REQUIRE(same_bits(a, b));
      const Tensor one = reduced(1, 2 * ranks, numel);
      for (std::int64_t i = 0; i < numel; ++i) REQUIRE(a.data<float>()[i] == Approx(one.data<float>()[i]).margin(1e-5));
    }
  }
}

TEST_CASE("whole numbers come out exact on any number of ranks, f32 and f64") {
  for (int ranks : {1, 2, 3, 4, 5, 6, 7, 8}) {
    for (DType dtype : {DType::f32, DType::f64}) {
      for (std::int64_t numel : {3, 30011}) {
        CAPTURE(ranks, numel);
        run_ranks(ranks, [&](Communicator& comm) {
          Tensor t = empty({numel}, DType::f64);
          for (std::int64_t i = 0; i < numel; ++i)
            t.data<double>()[i] = static_cast<double>((i % 1000) * (comm.rank() + 1));
          t = t.to(dtype);
          tree_all_reduce(comm, t, "whole numbers");
          const Tensor got = t.to(DType::f64);
          const double factor = comm.size() * (comm.size() + 1) / 2.0;
          for (std::int64_t i = 0; i < numel; ++i)
            require(got.data<double>()[i] == static_cast<double>(i % 1000) * factor, "test", "element ", i, ": ",
                    got.data<double>()[i]);
        });
      }
    }
  }
}

TEST_CASE("tree_sum is the tree over ranks, TreeSum the tree over leaves") {
  for (int ranks : {1, 2, 3, 4, 6, 8}) {
    std::vector<double> values;
    for (int r = 0; r < ranks; ++r)
      values.push_back(random_normal({1}, 0, 1, 3, static_cast<std::uint64_t>(r), DType::f64).item());
    run_ranks(ranks, [&](Communicator& comm) {
      Tensor t = full({1}, values[static_cast<std::size_t>(comm.rank())], DType::f64);
      tree_all_reduce(comm, t, "value");
      require(t.item() == tree_sum(values), "test", "differs on ", comm.size(), " ranks");
    });
  }
  TreeSum sum(3);
  sum.add(1e16);
  sum.add(-1e16);
  REQUIRE_THROWS_AS(sum.result(), Error);
  sum.add(1.0);
  REQUIRE(sum.result() == 1.0);
  REQUIRE_THROWS_AS(sum.add(1.0), Error);
}

TEST_CASE("an accumulator refuses what is not a leaf") {
  TreeAccumulator sum(2);
  sum.add(zeros({4}, DType::f32));
  REQUIRE_THROWS_AS(sum.result(), Error);
  REQUIRE_THROWS_AS(sum.add(zeros({5}, DType::f32)), Error);
  REQUIRE_THROWS_AS(sum.add(zeros({4}, DType::f64)), Error);
  run_ranks(1, [](Communicator& comm) {
    Tensor counts = zeros({4}, DType::i32);
    REQUIRE_THROWS_AS(tree_all_reduce(comm, counts, "counts"), Error);
  });
}
