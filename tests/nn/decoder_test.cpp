#include <cmath>
#include <map>

#include "core/parallel_for.h"
#include "core/rng.h"
#include "nn/generation.h"
#include "nn/model_cost.h"
#include "small_models.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace {

ModelConfig tiny(Arch arch, const AttentionKindConfig& kind) { return two_layers(arch, kind, 16); }

AttentionKindConfig sparsek(std::int64_t k, std::int64_t window) {
  AttentionKindConfig kind;
  kind.type = AttentionKind::sparsek;
  kind.k = k, kind.window = window;
  return kind;
}

}  // namespace

TEST_CASE("decoder: gradients agree with finite differences in fp64", "[nn]") {
  const auto arch = GENERATE(Arch::gpt2, Arch::llama);
  const auto kind = GENERATE(AttentionKindConfig{}, sparsek(3, 2));
  const Decoder model(tiny(arch, kind), {.compute = DType::f64, .seed = 5});
  const TokenBatch batch{random_tokens(2, 16, 37, 1), random_tokens(2, 16, 37, 2), {}};
  check_model_gradients(model, batch, 1e-5, 1e-6);
}

TEST_CASE("decoder: adding scorers leaves the other weights as they were, and with k + W >= T the loss too", "[nn]") {
  const auto arch = GENERATE(Arch::gpt2, Arch::llama);
  const Decoder dense(tiny(arch, AttentionKindConfig{}), {.compute = DType::f64, .seed = 3});
  const Decoder sparse(tiny(arch, sparsek(12, 4)), {.compute = DType::f64, .seed = 3});
  std::map<std::string, ParameterPtr> by_name;
  for (const ParameterPtr& p : dense.parameters()) by_name[p->name] = p;
  int scorers = 0;
  for (const ParameterPtr& p : sparse.parameters()) {
    if (p->scorer) {
      ++scorers;
      continue;
    }
    const auto a = p->master.span<double>(), b = by_name.at(p->name)->master.span<double>();
    CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
  }
  CHECK(scorers == 2);
  const TokenBatch batch{random_tokens(1, 16, 37, 1), random_tokens(1, 16, 37, 2), {}};
  CHECK(loss_of(sparse, batch) == Approx(loss_of(dense, batch)).epsilon(1e-12));
}

TEST_CASE("decoder: generation equals the full forward", "[nn]") {
  const auto arch = GENERATE(Arch::gpt2, Arch::llama);
  auto kind = GENERATE(AttentionKindConfig{}, sparsek(3, 2));
  if (kind.type == AttentionKind::sparsek) kind.score.norm = GENERATE(ScoreNorm::none, ScoreNorm::timestep);
  const Decoder model(tiny(arch, kind), {.compute = DType::f32, .seed = 9});
  const Tensor tokens = random_tokens(2, 16, 37, 4);
  const NoGrad no_grad;
  const Tensor full = model.logits(tokens);
  Generation generation(model, 2, 16);
  for (std::int64_t t = 0; t < 16; ++t) {
    const std::int64_t end = t == 0 ? 3 : t + 1;  // a prompt of three, then one by one
    if (t == 1 || t == 2) continue;
    const Tensor last = generation.append(tokens.slice(1, t, t == 0 ? 3 : end).contiguous());
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t v = 0; v < 37; ++v)
        REQUIRE(std::abs(last.data<float>()[b * 37 + v] - full.data<float>()[(b * 16 + end - 1) * 37 + v]) < 1e-4f);
  }
  if (kind.type == AttentionKind::sparsek) CHECK(generation.cache_rows() == 2 * 2 * 2 * (3 + 2));
}

TEST_CASE("decoder: recompute changes memory, not bits", "[nn]") {
  const ModelConfig config = tiny(Arch::llama, sparsek(3, 2));
  const TokenBatch batch{random_tokens(2, 16, 37, 1), random_tokens(2, 16, 37, 2), {}};
  const auto gradients = [&](const RecomputeConfig& again) {
    const Decoder model(config, {.compute = DType::f32, .seed = 5, .recompute = again});
    std::vector<SelectionStats> stats;
    backward(model.loss_sum(batch, nullptr, &stats));
    CHECK(stats.at(1).ever_selected > 0);
    std::vector<float> all;
    for (const ParameterPtr& p : model.parameters()) {
      const auto g = p->value.grad().span<float>();
      all.insert(all.end(), g.begin(), g.end());
    }
    return all;
  };
  const auto plain = gradients({});
  CHECK(gradients({.attention = true}) == plain);
  CHECK(gradients({.mlp = true}) == plain);
  CHECK(gradients({.layers = {0, 1}}) == plain);
}

TEST_CASE("decoder: loss and gradients have the same bits on every number of threads", "[nn]") {
  const auto arch = GENERATE(Arch::gpt2, Arch::llama);
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  ModelConfig config;
  config.arch = arch;
  config.n_layers = 2, config.d_model = 192, config.n_heads = 4;  // products of several pieces
  config.attention.kinds["a"] = sparsek(24, 16);
  config.attention.pattern = {"a"};
  config.resolve(257, 128);
  const TokenBatch batch{random_tokens(4, 128, 257, 1), random_tokens(4, 128, 257, 2), {}};
  const int before = num_threads();
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    const Decoder model(config, {.compute = dtype, .seed = 5});
    const Variable loss = model.loss_sum(batch);
    backward(loss);
    std::vector<float> all{static_cast<float>(loss.value().item())};
    for (const ParameterPtr& p : model.parameters()) {
      const auto g = p->value.grad().span<float>();
      all.insert(all.end(), g.begin(), g.end());
    }
    if (first.empty()) first = all;
    CHECK(all == first);
  }
  set_num_threads(before);
}

TEST_CASE("model cost: what a forward pass keeps is what was counted", "[nn]") {
  const auto arch = GENERATE(Arch::gpt2, Arch::llama);
  const RecomputeConfig again{.activations = GENERATE(0, 3)};
  const DType dtype = GENERATE(DType::f32, DType::bf16);
  ModelConfig config;
  config.arch = arch;
  config.n_layers = 4, config.d_model = 64, config.n_heads = 4;
  config.resolve(97, 256);
  const Decoder model(config, {.compute = dtype, .seed = 5, .recompute = again});
  const TokenBatch batch{random_tokens(8, 256, 97, 1), random_tokens(8, 256, 97, 2), {}};
  const std::int64_t before = memory_stats({}).current_bytes;
  const Variable loss = model.loss_sum(batch);
  const double kept = static_cast<double>(memory_stats({}).current_bytes - before);
  const double counted = model_cost(config, 8, 256, dtype, again).activation_bytes_per_token * 8 * 256 +
                         (97.0 + 8 * 256) * 64 * 4;  // and the gradients that the loss holds
  CAPTURE(arch == Arch::gpt2, again.activations, name_of(dtype), kept, counted, kept / counted);
  CHECK(std::abs(kept / counted - 1) < 0.05);
}

TEST_CASE("the cost of a GPU counts the row lists that wait for backward", "[nn]") {
  const auto bytes = [](std::int64_t k, Device device) {
    ModelConfig config = tiny(Arch::llama, sparsek(k, 64));
    return model_cost(config, 1, 65536, DType::f32, {}, device).activation_bytes_per_token;
  };
  const Device gpu{Device::Kind::cuda, 0};
  CHECK(bytes(4096, {}) == bytes(64, {}));
  // k more rows in every list of 64 and of 512 queries, 4 bytes each, in every layer and score head.
  const ModelConfig config = tiny(Arch::llama, sparsek(64, 64));
  double heads = 0;
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer)
    heads += static_cast<double>(config.score_heads(layer));
  CHECK(bytes(4096, gpu) - bytes(64, gpu) == Approx(4 * heads * (4096 - 64) * (1.0 / 64 + 1.0 / 512)).epsilon(1e-3));
}

TEST_CASE("decoder: documents packed in a row do not see each other", "[nn]") {
  const Decoder model(tiny(Arch::llama, sparsek(3, 2)), {.compute = DType::f64, .seed = 5});
  Tensor tokens = random_tokens(1, 16, 37, 4), starts = empty({1, 16}, DType::i32);
  for (int t = 0; t < 16; ++t) starts.data<std::int32_t>()[t] = t < 7 ? 0 : 7;
  const NoGrad no_grad;
  const Tensor before = model.logits(tokens, starts).clone();
  tokens.data<std::int32_t>()[2] = (tokens.data<std::int32_t>()[2] + 1) % 37;
  const Tensor after = model.logits(tokens, starts);
  const auto a = before.slice(1, 7, 16).contiguous(), b = after.slice(1, 7, 16).contiguous();
  const auto x = a.span<double>(), y = b.span<double>();
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(x[i] - y[i]));
  CHECK(worst <= 1e-14);  // not 0: the other document's selected rows shift the order of a tile's sums
}

TEST_CASE("model cost: counted parameters are the allocated ones, and GPT-2 124M has its published size", "[nn]") {
  for (const Arch arch : {Arch::gpt2, Arch::llama}) {
    auto kind = sparsek(3, 2);
    kind.score.norm = ScoreNorm::timestep;
    const ModelConfig config = tiny(arch, kind);
    const Decoder model(config, {});
    std::int64_t n = 0;
    for (const ParameterPtr& p : model.parameters()) n += p->numel();
    CHECK(model_cost(config, 1, 16, DType::f32, {}).parameters == n);
  }
  ModelConfig gpt2;
  gpt2.arch = Arch::gpt2;
  gpt2.n_layers = 12, gpt2.d_model = 768, gpt2.n_heads = 12;
  gpt2.resolve(50257, 1024);
  const ModelCost cost = model_cost(gpt2, 1, 1024, DType::bf16, {});
  CHECK(cost.parameters == 124439808);
  CHECK(cost.flops_per_token == cost.flops_per_token_full);
}
