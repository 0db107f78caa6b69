// Gradients on a GPU: the bits of the CPU's tree, the numbers that decide a step, and waits only where they belong.
#include <cmath>
#include <cstring>
#include <limits>

#include "core/rng.h"
#include "dist/kernels/kernels.h"
#include "dist/reducer.h"
#include "support/catch.h"
#include "support/gpu.h"

using namespace sieve;
using sieve::test::gpu_stream;

namespace {

bool same(const Tensor& a, const Tensor& b) {
  const Tensor x = a.to(Stream{}), y = b.to(Stream{});
  return x.nbytes() == y.nbytes() && std::memcmp(x.raw(), y.raw(), x.nbytes()) == 0;
}

// One call on either device; operands begin `shift` elements into their buffers.
Tensor chain(const Stream& on, std::int64_t n, int sources, std::int64_t shift, bool leaf, bool in_place, DType dtype) {
  const auto operand = [&](int i) {
    return random_normal({n + shift}, 0, 1, 17, stream_of(i, n), dtype).to(on).slice(0, shift, n + shift);
  };
  AddChainArgs args{.source_count = sources, .n = n, .dtype = dtype};
  std::vector<Tensor> held;
  for (int s = 0; s < sources; ++s) {
    held.push_back(operand(s));
    args.sources[s] = held.back().raw();
  }
  held.push_back(operand(99));
  if (leaf) args.leaf = held.back().raw();
  const Tensor dest = in_place && sources > 0 ? held[0] : operand(100);
  args.dest = dest.raw();
  launch(on, args);
  return dest;
}

const std::vector<GradientSlot> kSlots = {{"a", {33, 7}}, {"b", {1}}, {"c", {300, 100}},
                                          {"d", {64}},    {"e", {0}}, {"f", {20001}}};

Tensor reduced(const Stream& on, std::int64_t micro_batches, const ReducerOptions& options, double* norm = nullptr) {
  SelfCommunicator comm;
  GradientReducer reducer(comm, kSlots, options, on);
  for (int step = 0; step < 2; ++step) {
    reducer.begin_step(micro_batches);
    for (std::int64_t j = 0; j < micro_batches; ++j) {
      for (std::int64_t p = reducer.parameters() - 1; p >= 0; --p) {
        if (p == 2 && j % 2 == 1) continue;  // no gradient: zeros
        reducer.ready(p, random_normal(kSlots[static_cast<std::size_t>(p)].shape, 0, 1, 5, stream_of(p, j)).to(on));
      }
      reducer.end_micro_batch();
    }
    reducer.finish();
  }
  if (norm != nullptr) *norm = reducer.squared_norm().item();
  return reducer.flat().to(Stream{});
}

}  // namespace

TEST_CASE("GPU: partial sums have the CPU's bits at every length, alignment and number of sources", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const std::int64_t n : {0, 1, 3, 64, 1000, 300007}) {
      for (const int sources : {0, 1, 2, 5}) {
        for (const std::int64_t shift : {0, 1, 4}) {
          for (const bool leaf : {false, true}) {
            for (const bool in_place : {false, true}) {
              INFO(name_of(dtype) << " n " << n << " sources " << sources << " shift " << shift << " leaf " << leaf
                                  << " in place " << in_place);
              CHECK(same(chain(gpu_stream(), n, sources, shift, leaf, in_place, dtype),
                         chain({}, n, sources, shift, leaf, in_place, dtype)));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("GPU: a step is decided by the same numbers as on the CPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  struct Case {
    std::vector<double> losses;
    double tokens, squared_norm, clip;
  };
  const auto decide = [](const Case& c, const Stream& on) {
    const Tensor losses = from_values<double>(c.losses, {static_cast<std::int64_t>(c.losses.size())}).to(on);
    const Tensor totals = zeros({2}, DType::f64, on), norm = full({1}, c.squared_norm, DType::f64, on);
    const Tensor control = zeros({2}, DType::f32, on);
    launch(
        on,
        StepTotalsArgs{
            .losses = losses.data<double>(), .n = losses.numel(), .tokens = c.tokens, .totals = totals.data<double>()});
    launch(on, StepControlArgs{.totals = totals.data<double>(),
                               .squared_norm = norm.data<double>(),
                               .clip = c.clip,
                               .control = control.data<float>()});
    return control;
  };
  for (const Case& c : {Case{{1, 2}, 100, 4, 0}, Case{{1, 2}, 100, 4e6, 1}, Case{{3}, 7, 1.7e5, 0.3}, Case{{}, 0, 0, 1},
                        Case{{1, nan}, 100, 4, 1}, Case{{1}, 100, inf, 1}, Case{{-inf}, 9, 1, 0}, Case{{1}, 9, nan, 0},
                        Case{std::vector<double>(1000, inf), 65536, 3.25, 1}}) {
    INFO("tokens " << c.tokens << " squared norm " << c.squared_norm << " clip " << c.clip);
    CHECK(same(decide(c, gpu_stream()), decide(c, {})));
  }
}

TEST_CASE("GPU: the gradient has the CPU's bits for every accumulation, overlapped or not", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const bool deterministic : {true, false}) {
    for (const std::int64_t micro_batches : {1, 3, 8, 12}) {
      double first = 0;
      for (const bool overlap : {true, false}) {
        INFO(micro_batches << " micro-batches, deterministic " << deterministic << ", overlap " << overlap);
        const ReducerOptions options{
            .bucket_bytes = overlap ? 4000 : 1 << 26, .deterministic = deterministic, .overlap = overlap};
        double here = 0, there = 0;
        CHECK(same(reduced(gpu_stream(), micro_batches, options, &there), reduced({}, micro_batches, options, &here)));
        CHECK(there == Approx(here).epsilon(1e-12));  // fp64 over another tree
        if (overlap) first = there;
        CHECK(there == first);
      }
    }
  }
}
