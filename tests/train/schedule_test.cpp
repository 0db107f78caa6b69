#include "train/schedule.h"

#include <cmath>
#include <vector>

#include "support/catch.h"
#include "train/adamw.h"
#include "train/run_config.h"

using namespace sieve;

namespace {

// AdamW as the paper writes it (arXiv 1711.05101, Algorithm 2), in fp64.
struct NaiveAdamW {
  std::vector<double> p, m, v;
  void step(const std::vector<double>& g, int t, double lr, double b1, double b2, double eps, double decay) {
    for (std::size_t i = 0; i < p.size(); ++i) {
      m[i] = b1 * m[i] + (1 - b1) * g[i];
      v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i];
      const double mhat = m[i] / (1 - std::pow(b1, t)), vhat = v[i] / (1 - std::pow(b2, t));
      p[i] -= lr * (decay * p[i] + mhat / (std::sqrt(vhat) + eps));
    }
  }
};

}  // namespace

TEST_CASE("schedules take the values of their formulas") {
  const double lr = 2.0;
  ScheduleConfig s{.warmup = 4, .min_lr = 0.5};
  SECTION("warm-up rises by equal steps and reaches the peak at its last update") {
    for (const auto type : {ScheduleType::cosine, ScheduleType::linear, ScheduleType::wsd, ScheduleType::constant,
                            ScheduleType::inv_sqrt}) {
      s.type = type;
      CHECK(learning_rate(s, lr, 0, 20) == 0.5);
      CHECK(learning_rate(s, lr, 1, 20) == 1.0);
      CHECK(learning_rate(s, lr, 3, 20) == 2.0);
    }
  }
  SECTION("cosine") {
    CHECK(learning_rate(s, lr, 4, 20) == 2.0);
    CHECK(learning_rate(s, lr, 12, 20) == Approx(1.25).epsilon(1e-14));  // half way: the mean
    CHECK(learning_rate(s, lr, 8, 20) ==
          Approx(0.5 + 0.75 * (1 + std::sqrt(0.5))).epsilon(1e-14));  // a quarter: cos(pi/4)
    CHECK(learning_rate(s, lr, 20, 20) == Approx(0.5).epsilon(1e-14));
    CHECK(learning_rate(s, lr, 99, 20) == Approx(0.5).epsilon(1e-14));
  }
  SECTION("linear") {
    s.type = ScheduleType::linear;
    CHECK(learning_rate(s, lr, 4, 20) == 2.0);
    CHECK(learning_rate(s, lr, 8, 20) == Approx(1.625));
    CHECK(learning_rate(s, lr, 20, 20) == Approx(0.5));
  }
  SECTION("wsd holds the peak, then falls over the last share of all updates") {
    s.type = ScheduleType::wsd;
    s.decay = 0.25;  // the last 5 of 20
    CHECK(learning_rate(s, lr, 4, 20) == 2.0);
    CHECK(learning_rate(s, lr, 15, 20) == 2.0);
    CHECK(learning_rate(s, lr, 16, 20) == Approx(0.5 + 1.5 * 0.8));
    CHECK(learning_rate(s, lr, 19, 20) == Approx(0.5 + 1.5 * 0.2));
    CHECK(learning_rate(s, lr, 20, 20) == Approx(0.5));
    s.decay = 0;
    CHECK(learning_rate(s, lr, 19, 20) == 2.0);
  }
  SECTION("constant and inverse square root") {
    s.type = ScheduleType::constant;
    CHECK(learning_rate(s, lr, 19, 20) == 2.0);
    s.type = ScheduleType::inv_sqrt;
    CHECK(learning_rate(s, lr, 15, 1000) == Approx(2.0 * std::sqrt(4.0 / 16.0)));
    CHECK(learning_rate(s, lr, 999, 1000) == 0.5);  // the floor
    s.warmup = 0;
    CHECK(learning_rate(s, lr, 0, 1000) == 2.0);
  }
}

TEST_CASE("AdamW follows the naive fp64 form, decays only matrices and restores its moments") {
  ParameterFactory make(DType::f32, 7);
  const auto matrix = make.make("layer.weight", {5, 7}, {.std = 1.0}),
             vector = make.make("norm.weight", {9}, {.constant = 1.0});
  const auto scorer = make.make_scorer("layer.sparsek.score.weight", {2, 7}, {.std = 1.0});
  OptimizerConfig config{.lr = 0.1, .betas = {0.9, 0.95}, .eps = 1e-8, .weight_decay = 0.3};
  AdamW adamw(config, {matrix, vector, scorer});
  std::vector<NaiveAdamW> naive;
  for (const auto& p : adamw.parameters()) {
    const auto values = p->master.span<float>();
    naive.push_back(
        {{values.begin(), values.end()}, std::vector<double>(values.size()), std::vector<double>(values.size())});
  }
  const double scale = 0.25;  // what clipping and the token count do to the sum
  for (int t = 1; t <= 10; ++t) {
    std::vector<Tensor> grads;
    for (std::size_t i = 0; i < naive.size(); ++i) {
      grads.push_back(
          random_normal(adamw.parameters()[i]->master.shape(), 0.1, 2.0, 99, static_cast<std::uint64_t>(t) * 10 + i));
      std::vector<double> g;
      for (const float x : grads.back().span<float>()) g.push_back(scale * static_cast<double>(x));
      naive[i].step(g, t, 0.1 / t, 0.9, 0.95, 1e-8, i == 0 ? 0.3 : 0.0);
    }
    adamw.step(grads, 0.1 / t, scale);
    for (std::size_t i = 0; i < naive.size(); ++i) {
      const auto got = adamw.parameters()[i]->master.span<float>();
      for (std::size_t k = 0; k < got.size(); ++k)
        REQUIRE(static_cast<double>(got[k]) == Approx(naive[i].p[k]).margin(2e-6));
    }
  }
  CHECK(adamw.updates() == 10);
  const TensorMap state = adamw.state();
  CHECK(state.size() == 6);
  CHECK(static_cast<double>(state.at("norm.weight.v").span<float>()[3]) == Approx(naive[1].v[3]).epsilon(1e-5));
}

TEST_CASE("AdamW writes the bf16 copy of its fp32 master") {
  ParameterFactory make(DType::bf16, 7);
  const auto p = make.make("w", {4, 4}, {.std = 1.0});
  AdamW adamw({}, {p});
  adamw.step(std::vector<Tensor>{full({4, 4}, 1.0, DType::f32)}, 1e-3, 1.0);
  const auto master = p->master.span<float>();
  const auto copy = p->value.value().span<bf16>();
  for (std::size_t i = 0; i < copy.size(); ++i) CHECK(copy[i].bits == bf16(master[i]).bits);
  CHECK_THROWS_AS(adamw.step(std::vector<Tensor>{full({4, 3}, 1.0, DType::f32)}, 1e-3, 1.0), Error);
}

TEST_CASE("gradients are clipped by their global norm") {
  const std::vector<Tensor> grads{full({2, 2}, 1.0, DType::f32), full({5}, 2.0, DType::f32),
                                  full({1}, 5.0, DType::f32)};
  CHECK(gradient_norm(grads) == Approx(7.0).epsilon(1e-12));  // sqrt(4 + 20 + 25)
  CHECK(clip_factor(7.0, 3.5) == 0.5);
  CHECK(clip_factor(7.0, 8.0) == 1.0);
  CHECK(clip_factor(7.0, 0.0) == 1.0);
}

TEST_CASE("a run's length and accumulation follow from its batch") {
  RunConfig c;
  c.data.seq_len = 64;
  c.train.micro_batch = 2;
  c.train.global_batch = 1024;
  c.train.tokens = 10'000;
  const RunScale scale = scale_of(c, 2, 0);
  CHECK(scale.steps == 10);  // rounded up
  CHECK(scale.samples_per_step == 16);
  CHECK(scale.micro_batches == 8);
  CHECK(scale.accumulation == 4);
  c.train.tokens.reset();
  c.train.epochs = 1.5;
  CHECK(scale_of(c, 2, 100).steps == 10);  // 150 samples in steps of 16
  c.train.global_batch.reset();
  CHECK(scale_of(c, 4, 100).tokens_per_step == 512);
  CHECK(scale_of(c, 4, 100).accumulation == 1);
}

TEST_CASE("patterns of names") {
  CHECK(matches_pattern("*.sparsek.*", "layers.0.attn.sparsek.score.weight"));
  CHECK_FALSE(matches_pattern("*.sparsek.*", "layers.0.attn.qkv.weight"));
  CHECK(matches_pattern("layers.?.norm*", "layers.3.norm1.weight"));
  CHECK_FALSE(matches_pattern("layers.?.norm*", "layers.13.norm1.weight"));
  CHECK(matches_pattern("*a*b", "xaxbxb"));
  CHECK_FALSE(matches_pattern("*a*b", "xaxbx"));
  CHECK(matches_pattern("*", ""));
  CHECK_FALSE(matches_pattern("", "x"));
}
