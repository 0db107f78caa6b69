// A whole step, from micro-batches to updated weights: the same bits for every split over ranks, with and without
// overlap and shared moments; decided by numbers that the host has not seen.
#include "train/gradient_step.h"

#include <cmath>
#include <limits>

#include "core/rng.h"
#include "dist/thread_communicator.h"
#include "support/catch.h"
#include "support/compare.h"
#include "train/adamw.h"

using namespace sieve;
using sieve::test::same_bits;
using sieve::testing::run_ranks;

namespace {

ModelConfig tiny() {
  ModelConfig c;
  c.n_layers = 2;
  c.d_model = 16;
  c.n_heads = 2;
  c.attention.kinds["sk"] = {.type = AttentionKind::sparsek, .window = 4, .k = 4};
  c.attention.pattern = {"sk"};
  c.resolve(50, 16);
  return c;
}

std::shared_ptr<const TrainingSet> texts() {
  std::vector<std::int32_t> ids(3000);
  const Philox random{3, 1};
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(random.bits64(i) % 50);
  auto source = std::make_shared<MemoryTokens>("memory", std::move(ids));
  return std::make_shared<TrainingSet>(std::vector<TrainingSet::Source>{{source, {}}}, 16, 1, false);
}

struct Case {
  int ranks = 1;
  std::int64_t micro_batches = 4;  // of all ranks
  ReducerOptions options{.bucket_bytes = 2000};
  bool shared = false;
  bool by_hand = false;  // the host computes the factor and applies it after the step
  double clip = 0.5;
  std::string poisoned;  // a parameter that holds an infinity in the second step
};

struct Result {
  std::vector<Tensor> weights;
  StepSummary last;
  std::int64_t updates = 0;
};

Result train(const Case& c) {
  Result result;
  run_ranks(c.ranks, [&](Communicator& comm) {
    const Decoder model(tiny(), {.compute = DType::f32, .seed = 5, .recompute = {}});
    ReducerOptions options = c.options;
    options.shard = c.shared;
    GradientStep step(model, comm, options, c.micro_batches / comm.size());
    AdamW adamw({}, step.parameters(), c.shared ? &comm : nullptr);
    Loader loader(texts(), 2, {.per_step = c.micro_batches, .rank = comm.rank(), .world = comm.size()}, 0, 2);
    StepSummary summary;
    for (int i = 0; i < 3; ++i) {
      for (const auto& p : step.parameters()) {
        if (i == 1 && p->name == c.poisoned) p->master.data<float>()[0] = std::numeric_limits<float>::infinity();
      }
      const auto apply = [&](const Tensor& g, const Tensor& control) { adamw.step(g, 1e-2, 1.0, control); };
      summary = step.run(loader, {}, nullptr, c.clip, c.by_hand ? GradientStep::Update() : apply);
      if (c.by_hand) {
        const double mean = 1.0 / static_cast<double>(summary.tokens);
        adamw.step(step.gradients(), 1e-2, mean * clip_factor(std::sqrt(summary.squared_norm) * mean, c.clip));
      } else if (summary.flags.nonfinite) {
        adamw.forget_update();
      }
    }
    if (comm.rank() != 0) return;
    for (const auto& p : step.parameters()) result.weights.push_back(p->master.clone());
    result.last = summary;
    result.updates = adamw.updates();
  });
  return result;
}

bool same(const Result& a, const Result& b) {
  bool all = a.weights.size() == b.weights.size() && !a.weights.empty();
  for (std::size_t i = 0; all && i < a.weights.size(); ++i) all = same_bits(a.weights[i], b.weights[i]);
  return all;
}

}  // namespace

TEST_CASE("one set of weights for every number of ranks, overlapped or not, moments shared or not") {
  const Result one = train({});
  CHECK(one.updates == 3);
  CHECK(one.last.tokens == 4 * 2 * 16);
  CHECK(std::isfinite(one.last.loss_sum));
  for (const int ranks : {1, 2, 4}) {
    for (const bool shared : {false, true}) {
      for (const bool overlap : {false, true}) {
        INFO(ranks << " ranks, shared " << shared << ", overlap " << overlap);
        Case c{.ranks = ranks, .shared = shared};
        c.options.overlap = overlap;
        const Result r = train(c);
        CHECK(same(r, one));
        CHECK(r.last.loss_sum == one.last.loss_sum);
        CHECK(r.last.squared_norm == one.last.squared_norm);
      }
    }
  }
}

TEST_CASE("the device's decision is what the host would compute") {
  for (const double clip : {0.0, 1e-3, 0.5, 100.0}) {
    INFO("clip " << clip);
    Case device{.clip = clip}, host{.clip = clip};
    host.by_hand = true;
    CHECK(same(train(device), train(host)));
  }
}

TEST_CASE("the fast mode reduces each part to its owner: the bits of a reduction to all") {
  Case whole{.ranks = 2}, parts{.ranks = 2, .shared = true};
  whole.options.deterministic = parts.options.deterministic = false;
  whole.clip = parts.clip = 0;  // the parts' norms are added in another order
  const Result a = train(whole), b = train(parts);
  CHECK(same(a, b));
  CHECK(b.last.squared_norm == Approx(a.last.squared_norm).epsilon(1e-12));
}

TEST_CASE("a step that is not finite changes no weight on any rank") {
  for (const int ranks : {1, 2}) {
    for (const bool shared : {false, true}) {
      INFO(ranks << " ranks, shared " << shared);
      const Result r = train({.ranks = ranks, .shared = shared, .poisoned = "final_norm.weight"});
      CHECK(r.last.flags.nonfinite);
      CHECK(r.updates == 1);
      bool finite = true;
      for (const Tensor& w : r.weights) {
        int bad = 0;
        for (const float x : w.span<float>()) bad += std::isfinite(x) ? 0 : 1;
        finite = finite && bad <= 1;  // the poison itself
      }
      CHECK(finite);
    }
  }
}
