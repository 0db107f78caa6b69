// Gradient reduction: the same bits for every split of a step, whatever the order of the hooks; overlap; failures.
#include "dist/reducer.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <vector>

#include "core/parallel_for.h"
#include "core/rng.h"
#include "dist/thread_communicator.h"
#include "support/catch.h"
#include "support/errors.h"

using namespace sieve;
using sieve::test::error_text;
using sieve::testing::run_ranks;
using sieve::testing::ThreadCommunicator;

namespace {

const std::vector<Shape> kShapes = {{33, 7}, {1}, {300, 100}, {64}, {5, 5, 5}, {20000}, {2, 9}};

std::vector<GradientSlot> slots() {
  std::vector<GradientSlot> out;
  for (std::size_t i = 0; i < kShapes.size(); ++i) out.push_back({cat("p", i), kShapes[i]});
  return out;
}

Tensor leaf(std::int64_t parameter, std::int64_t micro_batch) {
  return random_normal(kShapes[static_cast<std::size_t>(parameter)], 0, 1, 5, stream_of(parameter, micro_batch));
}

struct Run {
  int ranks;
  std::int64_t micro_batches;  // of all ranks together
  ReducerOptions options;
  int steps = 2;
  std::int64_t silent = -1;  // a parameter that gets no gradient in odd micro-batches
  std::function<Tensor(std::int64_t, std::int64_t)> grad = leaf;
};

// All gradients of all parameters, one after the other, as every rank has them.
std::vector<float> reduced(const Run& run) {
  std::vector<std::vector<float>> results(static_cast<std::size_t>(run.ranks));
  run_ranks(run.ranks, [&](Communicator& comm) {
    GradientReducer reducer(comm, slots(), run.options);
    const std::int64_t mine = run.micro_batches / comm.size(), n = reducer.parameters();
    std::vector<float>& out = results[static_cast<std::size_t>(comm.rank())];
    for (int step = 0; step < run.steps; ++step) {  // the buffers of one step serve the next
      reducer.begin_step(mine);
      for (std::int64_t j = 0; j < mine; ++j) {
        const std::int64_t global = comm.rank() * mine + j;
        for (std::int64_t i = 0; i < n; ++i) {
          // Each rank calls its hooks in another order.
          const std::int64_t p = comm.rank() % 2 ? n - 1 - i : (i + comm.rank()) % n;
          if (p != run.silent || global % 2 == 0) reducer.ready(p, run.grad(p, global));
        }
        reducer.end_micro_batch();
      }
      reducer.finish();
      out.clear();
      for (std::int64_t p = 0; p < n; ++p) {
        const Tensor g = reducer.gradient(p);
        require(g.shape() == kShapes[static_cast<std::size_t>(p)], "test", "shape ", g.shape());
        out.insert(out.end(), g.data<float>(), g.data<float>() + g.numel());
      }
    }
  });
  for (const auto& r : results) REQUIRE(std::memcmp(r.data(), results[0].data(), r.size() * sizeof(float)) == 0);
  return results[0];
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("one gradient, whatever the ranks, the accumulation, the buckets and the order of hooks") {
  for (std::int64_t micro_batches : {8, 24}) {
    const auto one = reduced({1, micro_batches, {}});
    for (int ranks : {1, 2, 4, 8}) {
      for (std::int64_t bucket : {1, 4000, 1 << 26}) {
        CAPTURE(micro_batches, ranks, bucket);
        REQUIRE(same_bits(reduced({ranks, micro_batches, {.bucket_bytes = bucket}}), one));
      }
    }
  }
}

TEST_CASE("a parameter without a gradient counts as zeros, at its place in the tree") {
  Run run{1, 8, {}};
  run.silent = 2;
  const auto one = reduced(run);
  for (int ranks : {2, 4, 8}) {
    run.ranks = ranks;
    REQUIRE(same_bits(reduced(run), one));
  }
  Run explicit_zeros{1, 8, {}};
  explicit_zeros.grad = [](std::int64_t p, std::int64_t j) {
    return p == 2 && j % 2 ? zeros(kShapes[2], DType::f32) : leaf(p, j);
  };
  REQUIRE(same_bits(reduced(explicit_zeros), one));
}

TEST_CASE("whole numbers come out exact in both modes, for any number of ranks") {
  auto whole = [](std::int64_t p, std::int64_t j) {
    return full(kShapes[static_cast<std::size_t>(p)], static_cast<double>((p + 1) * (j + 1)), DType::f32);
  };
  for (bool deterministic : {true, false}) {
    for (int ranks : {1, 2, 3, 4, 6}) {
      CAPTURE(deterministic, ranks);
      const std::vector<float> got =
          reduced({ranks, 12, {.bucket_bytes = 1000, .deterministic = deterministic}, 2, -1, whole});
      std::size_t at = 0;
      for (std::size_t p = 0; p < kShapes.size(); ++p) {
        for (std::int64_t i = 0; i < kShapes[p].numel(); ++i) REQUIRE(got[at++] == static_cast<float>((p + 1) * 78));
      }
      REQUIRE(at == got.size());
    }
  }
}

TEST_CASE("memory follows the tree") {
  SelfCommunicator comm;
  GradientReducer reducer(comm, {{"w", {1 << 20}}}, {});
  for (const auto& [micro_batches, copies] : {std::pair{1, 1}, {2, 1}, {8, 3}, {3, 1}, {12, 3}}) {
    CAPTURE(micro_batches);
    reducer.begin_step(micro_batches);
    REQUIRE(reducer.bytes() == std::int64_t{copies} * (4 << 20));
    REQUIRE(GradientReducer::buffers(micro_batches, true) == copies);
    for (int j = 0; j < micro_batches; ++j) reducer.end_micro_batch();
    reducer.finish();
  }
  REQUIRE(GradientReducer::buffers(64, false) == 1);
}

TEST_CASE("the norm depends neither on buckets nor on threads") {
  auto norm = [](std::int64_t bucket) {
    SelfCommunicator comm;
    GradientReducer reducer(comm, slots(), {.bucket_bytes = bucket});
    reducer.begin_step(1);
    for (std::int64_t p = 0; p < reducer.parameters(); ++p) reducer.ready(p, leaf(p, 0));
    reducer.end_micro_batch();
    reducer.finish();
    return reducer.squared_norm().item();
  };
  const int threads = num_threads();
  const double one = norm(1);
  double plain = 0;
  for (std::int64_t p = 0; p < static_cast<std::int64_t>(kShapes.size()); ++p) {
    const Tensor g = leaf(p, 0);
    for (float v : g.span<float>()) plain += static_cast<double>(v) * static_cast<double>(v);
  }
  REQUIRE(one == Approx(plain).epsilon(1e-12));
  for (int n : {1, 2, 4}) {
    set_num_threads(n);
    REQUIRE(norm(1 << 26) == one);
    REQUIRE(norm(4000) == one);
  }
  set_num_threads(threads);
}

namespace {

// Tells when a reduction arrives at the wire, or breaks there.
class SpyCommunicator : public Communicator {
 public:
  SpyCommunicator() : Communicator(0, 1) {}
  std::string_view backend() const override { return "spy"; }
  std::atomic<int> reductions = 0;
  int broken_at = -1;

 protected:
  void do_all_reduce(void*, std::int64_t, DType, ReduceOp) override {
    if (reductions == broken_at) fail(Exit::peer, "spy", "the wire broke");
    ++reductions;
  }
  void do_broadcast(void*, std::size_t, int) override {}
  void do_all_gather(const void*, void*, std::size_t) override {}
  void do_barrier() override {}
  void do_exchange(const void*, std::size_t, void*, std::size_t, int) override {}
};

bool reaches(const std::atomic<int>& value, int wanted) {
  for (int i = 0; i < 5000 && value < wanted; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return value >= wanted;
}

}  // namespace

TEST_CASE("buckets go out while backward still runs, in order, and only in the last micro-batch") {
  SpyCommunicator comm;
  GradientReducer reducer(comm, {{"a", {4}}, {"b", {4}}, {"c", {4}}}, {.bucket_bytes = 1, .deterministic = false});
  REQUIRE(reducer.bucket_count() == 3);
  const Tensor g = full({4}, 1, DType::f32);
  reducer.begin_step(2);
  for (std::int64_t p : {2, 1, 0}) reducer.ready(p, g);
  reducer.end_micro_batch();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  REQUIRE(comm.reductions == 0);
  reducer.ready(1, g);  // the middle bucket must wait for the one before it
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  REQUIRE(comm.reductions == 0);
  reducer.ready(2, g);
  REQUIRE(reaches(comm.reductions, 2));  // backward has not reached "a" yet
  reducer.ready(0, g);
  reducer.end_micro_batch();
  reducer.finish();
  REQUIRE(comm.reductions == 3);
  REQUIRE(reducer.gradient(0).data<float>()[0] == 2.0f);
  REQUIRE(reducer.stats().wait_seconds >= 0);
  REQUIRE(reducer.stats().reduce_seconds > 0);
}

TEST_CASE("a failure on the side thread surfaces in finish()") {
  SpyCommunicator comm;
  comm.broken_at = 1;
  {
    GradientReducer reducer(comm, {{"a", {4}}, {"b", {4}}, {"c", {4}}}, {.bucket_bytes = 1, .deterministic = false});
    reducer.begin_step(1);
    reducer.end_micro_batch();
    REQUIRE(error_text([&] { reducer.finish(); }) == "[spy] the wire broke");
  }
  REQUIRE(comm.abandoned());
}

TEST_CASE("an exception in the middle of a step does not hang on the peers") {
  const auto begin = std::chrono::steady_clock::now();
  REQUIRE(error_text([&] {
            run_ranks(2, [&](Communicator& comm) {
              GradientReducer reducer(comm, slots(), {.bucket_bytes = 1});
              reducer.begin_step(1);
              for (std::int64_t p = 6; p >= 0; --p) {
                if (comm.rank() == 1 && p == 3) fail(Exit::data, "test", "rank 1 breaks");
                reducer.ready(p, leaf(p, 0));
              }
              reducer.end_micro_batch();
              reducer.finish();
            });
          }) == "[test] rank 1 breaks");
  REQUIRE(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
}

TEST_CASE("misuse is refused with names") {
  SelfCommunicator comm;
  GradientReducer reducer(comm, {{"w", {4}}}, {});
  const Tensor g = full({4}, 1, DType::f32);
  REQUIRE_THROWS_AS(reducer.gradient(0), Error);
  REQUIRE(error_text([&] { reducer.ready(0, g); }) == "[reducer] w: ready outside of a step");
  REQUIRE_THROWS_AS(reducer.begin_step(0), Error);
  reducer.begin_step(1);
  REQUIRE_THROWS_AS(reducer.begin_step(1), Error);
  REQUIRE_THROWS_AS(reducer.finish(), Error);
  REQUIRE_THROWS_AS(reducer.ready(1, g), Error);
  REQUIRE(error_text([&] { reducer.ready(0, full({2, 2}, 1, DType::f32)); }) == "[reducer] w: gradient (2, 2) for (4)");
  REQUIRE_THROWS_AS(reducer.ready(0, full({4}, 1, DType::f64)), Error);
  reducer.ready(0, g);
  REQUIRE(error_text([&] { reducer.ready(0, g); }) == "[reducer] w: ready twice in micro-batch 0");
  reducer.end_micro_batch();
  REQUIRE_THROWS_AS(reducer.end_micro_batch(), Error);
  reducer.finish();
}
