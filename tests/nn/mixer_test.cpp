// Every attention type as a layer of a model: its parameters and memory are what was counted, generation gives what the
// forward gives.
#include "nn/mixer.h"

#include <algorithm>
#include <cmath>

#include "nn/generation.h"
#include "nn/model_cost.h"
#include "random_tokens.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"

using namespace sieve;
using sieve::test::random_tokens;

namespace {

// Small numbers with which every type leaves something out of 100 positions.
AttentionKindConfig kind_of(AttentionKind type) {
  AttentionKindConfig kind;
  kind.type = type;
  PatternSpec& p = kind.pattern;
  switch (type) {
    case AttentionKind::sliding_window: kind.window = 9, kind.sinks = 2; break;
    case AttentionKind::sparsek:
    case AttentionKind::random_rows: kind.k = 7, kind.window = 5; break;
    case AttentionKind::strided: p.stride = 7; break;
    case AttentionKind::fixed: p.stride = 9, p.summary = 2; break;
    case AttentionKind::longformer: kind.window = 6, p.dilation = 3, p.globals = 2; break;
    case AttentionKind::bigbird: p.block = 5, p.global_blocks = p.random_blocks = 1, p.window_blocks = 2; break;
    case AttentionKind::hash: p.buckets = 4; break;
    case AttentionKind::top_k: kind.k = 6; break;
    case AttentionKind::moba: p.block = 8, p.blocks = 3; break;
    case AttentionKind::dsa: kind.k = 6, p.index_heads = 2, p.index_dim = 4; break;
    case AttentionKind::nsa:
      kind.window = 9, p.block = 8, p.blocks = 5, p.compress_block = 8, p.compress_stride = 4;
      break;
    default: break;
  }
  return kind;
}

constexpr AttentionKind kTypes[] = {AttentionKind::full,        AttentionKind::sliding_window, AttentionKind::sparsek,
                                    AttentionKind::random_rows, AttentionKind::strided,        AttentionKind::fixed,
                                    AttentionKind::longformer,  AttentionKind::bigbird,        AttentionKind::hash,
                                    AttentionKind::top_k,       AttentionKind::moba,           AttentionKind::dsa,
                                    AttentionKind::nsa,         AttentionKind::linear,         AttentionKind::gla};

std::string_view name_of_type(AttentionKind type) { return kAttentionKindNames[static_cast<std::size_t>(type)]; }

ModelConfig model_of(Arch arch, AttentionKind type, std::int64_t d_model, std::int64_t max_seq) {
  ModelConfig c;
  c.arch = arch;
  c.n_layers = 2, c.d_model = d_model, c.n_heads = 4, c.n_kv_heads = 2, c.d_ff = 40;
  c.attention.kinds["a"] = kind_of(type);
  c.attention.pattern = {"a"};
  c.resolve(53, max_seq);
  c.init.std = 0.2;  // far from the uniform distribution, so that wrong keys show in the logits
  return c;
}

}  // namespace

TEST_CASE("every attention type: counted parameters are those that the model has", "[nn]") {
  for (const Arch arch : {Arch::gpt2, Arch::llama}) {
    for (const AttentionKind type : kTypes) {
      CAPTURE(name_of_type(type));
      ModelConfig config = model_of(arch, type, 24, 16);
      if (type == AttentionKind::sparsek) config.attention.kinds["a"].score.norm = ScoreNorm::timestep;
      const Decoder model(config, {});
      std::int64_t all = 0, scorers = 0, mixers = 0;
      for (const ParameterPtr& p : model.parameters()) {
        all += p->numel();
        scorers += p->scorer ? p->numel() : 0;
        mixers += p->name.find(".attn.") != std::string::npos ? p->numel() : 0;
      }
      const ModelCost cost = model_cost(config, 1, 16, DType::f32, {});
      CHECK(cost.parameters == all);
      CHECK(cost.sparsek_parameters == scorers);
      const std::vector<KindCost> kinds = kind_costs(config, 16, DType::f32);
      REQUIRE(kinds.size() == 1);
      CHECK(kinds[0].parameters * 2 == mixers);
      CHECK(kinds[0].layers == std::vector<std::int64_t>{0, 1});
    }
  }
}

TEST_CASE("every attention type: tokens one by one and after a prompt give the logits of the full forward", "[nn]") {
  constexpr std::int64_t kLength = 100;
  for (const AttentionKind type : kTypes) {
    const ModelConfig config = model_of(Arch::llama, type, 32, kLength);
    const Decoder model(config, {.compute = DType::f64, .seed = 3});
    const Tensor tokens = random_tokens(2, kLength, 53, 4), full = model.logits(tokens);
    CAPTURE(name_of_type(type));
    for (const std::int64_t prompt : {std::int64_t{1}, std::int64_t{37}}) {
      Generation generation(model, 2, kLength);
      double worst = 0;
      for (std::int64_t t = 0; t < kLength; t = generation.length()) {
        const std::int64_t end = t == 0 ? prompt : t + 1;
        const Tensor step = generation.append(tokens.slice(1, t, end).contiguous());
        const Tensor wanted = full.slice(1, end - 1, end).contiguous().reshape({2, 53});
        worst = std::max(worst, test::max_difference(step, wanted));
      }
      CAPTURE(prompt);
      CHECK(worst <= 1e-9);
    }
  }
}

TEST_CASE("every attention type: what a forward pass keeps is about what was counted", "[nn]") {
  for (const AttentionKind type : kTypes) {
    const ModelConfig config = model_of(Arch::llama, type, 64, 256);
    const Decoder model(config, {.compute = DType::f32, .seed = 5});
    const TokenBatch batch{random_tokens(8, 256, 53, 1), random_tokens(8, 256, 53, 2), {}};
    const std::int64_t before = memory_stats({}).current_bytes;
    const Variable loss = model.loss_sum(batch);
    const double kept = static_cast<double>(memory_stats({}).current_bytes - before);
    const double counted = model_cost(config, 8, 256, DType::f32, {}).activation_bytes_per_token * 8 * 256 +
                           (53.0 + 8 * 256) * 64 * 4;  // and the gradients that the loss holds
    CAPTURE(name_of_type(type), kept, counted, kept / counted);
    CHECK(std::abs(kept / counted - 1) < 0.1);
  }
}

TEST_CASE("every attention type: a cache holds the rows that the formula counts", "[nn]") {
  constexpr std::int64_t kLength = 100;
  for (const AttentionKind type : kTypes) {
    const ModelConfig config = model_of(Arch::llama, type, 32, kLength);
    const Decoder model(config, {.compute = DType::f32, .seed = 3});
    Generation generation(model, 1, kLength);
    generation.append(random_tokens(1, kLength, 53, 4));
    const KindCost cost = kind_costs(config, kLength, DType::f32)[0];
    CAPTURE(name_of_type(type));
    CHECK(generation.cache_rows() == cost.cached_rows * 2 * 2);
    // Beside rows and states: scores of a selection, buckets, what grows by doubling.
    CHECK(static_cast<double>(generation.cache_bytes()) >= 2 * cost.cache_bytes);
    CHECK(static_cast<double>(generation.cache_bytes()) <= 2 * cost.cache_bytes * 2);
  }
}

// Which positions the layers hold after a text, sequence by sequence.
static std::vector<std::vector<std::int64_t>> held_after(const Decoder& model, const Tensor& tokens) {
  Generation generation(model, tokens.size(0), tokens.size(1));
  generation.append(tokens);
  std::vector<std::vector<std::int64_t>> held;
  for (std::int64_t b = 0; b < tokens.size(0); ++b) {
    held.emplace_back();
    for (std::int64_t x = 0; x < 2 * 2; ++x) {
      const auto own = generation.selected(x / 2, b, x % 2);
      held.back().insert(held.back().end(), own.begin(), own.end());
    }
  }
  return held;
}

TEST_CASE("random rows: documents of other first tokens and models of another seed keep other positions", "[nn]") {
  constexpr std::int64_t T = 100;
  ModelConfig config = model_of(Arch::llama, AttentionKind::random_rows, 32, T);
  const Decoder model(config, {.compute = DType::f64, .seed = 3});
  Tensor tokens = random_tokens(3, T, 53, 4);
  for (std::int64_t t = 0; t < T; ++t) tokens.data<std::int32_t>()[T + t] = tokens.data<std::int32_t>()[t];
  tokens.data<std::int32_t>()[T + 20] ^= 1;  // a document that begins like the first
  const auto held = held_after(model, tokens);
  CHECK(held[0] == held[1]);
  CHECK(held[0] != held[2]);

  config.attention.kinds["a"].seed = 1;  // 0 before
  const Decoder other(config, {.compute = DType::f64, .seed = 3});
  CHECK(held_after(other, tokens)[0] != held[0]);
  REQUIRE(other.parameters().size() == model.parameters().size());
  for (std::size_t i = 0; i < model.parameters().size(); ++i) {  // a checkpoint of the one is one of the other
    CHECK(other.parameters()[i]->name == model.parameters()[i]->name);
    CHECK(test::same_bits(other.parameters()[i]->master, model.parameters()[i]->master));
  }
}

TEST_CASE("random rows: a packed document has the logits of the same document alone", "[nn]") {
  constexpr std::int64_t T = 120;
  const Decoder model(model_of(Arch::llama, AttentionKind::random_rows, 32, T), {.compute = DType::f64, .seed = 3});
  const Tensor tokens = random_tokens(2, T, 53, 4);
  Tensor starts = zeros({2, T}, DType::i32);
  for (std::int64_t t = 35; t < T; ++t) starts.data<std::int32_t>()[T + t] = t < 41 ? 35 : 41;
  const Tensor packed = model.logits(tokens, starts);
  const auto part = [](const Tensor& t, std::int64_t b, std::int64_t begin, std::int64_t end) {
    return t.slice(0, b, b + 1).slice(1, begin, end).contiguous();
  };
  const std::int64_t documents[][3] = {{0, 0, T}, {1, 0, 35}, {1, 35, 41}, {1, 41, T}};
  for (const auto& [b, begin, end] : documents) {
    CAPTURE(b, begin);
    CHECK(test::max_difference(model.logits(part(tokens, b, begin, end)), part(packed, b, begin, end)) <= 1e-10);
  }
}

TEST_CASE("random rows: run again in backward they give the same gradients", "[nn]") {
  const ModelConfig config = model_of(Arch::llama, AttentionKind::random_rows, 32, 64);
  const TokenBatch batch{random_tokens(2, 64, 53, 1), random_tokens(2, 64, 53, 2), {}};
  std::vector<Tensor> gradients[2];
  for (const bool again : {false, true}) {
    const Decoder model(config, {.compute = DType::f64, .seed = 3, .recompute = {.attention = again}});
    backward(model.loss_sum(batch));
    for (const ParameterPtr& p : model.parameters()) gradients[again].push_back(p->value.grad());
  }
  for (std::size_t i = 0; i < gradients[0].size(); ++i) CHECK(test::same_bits(gradients[1][i], gradients[0][i]));
}

TEST_CASE("random rows on a GPU: logits of packed documents and of a generation are the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  constexpr std::int64_t T = 100;
  const ModelConfig config = model_of(Arch::llama, AttentionKind::random_rows, 32, T);
  const Decoder here(config, {.seed = 3}), there(config, {.seed = 3});
  place_parameters(there.parameters(), test::gpu_stream());
  const Tensor tokens = random_tokens(2, T, 53, 4);
  Tensor starts = zeros({2, T}, DType::i32);
  for (std::int64_t t = 35; t < T; ++t) starts.data<std::int32_t>()[T + t] = 35;
  CHECK(test::max_difference(there.logits(tokens, starts).to(Stream{}), here.logits(tokens, starts)) <= 1e-4);
  const Tensor full = here.logits(tokens);
  Generation generation(there, 2, T);
  for (std::int64_t t = 0; t < T; t = generation.length()) {
    const std::int64_t end = t == 0 ? 5 : t + 1;
    const Tensor step = generation.append(tokens.slice(1, t, end).contiguous()).to(Stream{});
    CAPTURE(end);
    CHECK(test::max_difference(step, full.slice(1, end - 1, end).contiguous().reshape({2, 53})) <= 1e-4);
  }
}

TEST_CASE("random rows report the statistics of their selection beside which a learned one is read", "[nn]") {
  const Decoder model(model_of(Arch::llama, AttentionKind::random_rows, 32, 256), {.seed = 3});
  std::vector<SelectionStats> stats;
  const TokenBatch batch{random_tokens(2, 256, 53, 1), random_tokens(2, 256, 53, 2), {}};
  model.loss_sum(batch, nullptr, &stats);
  REQUIRE(stats.size() == 2);
  for (const SelectionStats& s : stats) {
    CHECK(std::abs(s.score_std - 0.2887) < 0.03);              // of a uniform number
    CHECK((s.ever_selected > 0.05 && s.ever_selected < 0.3));  // about 7 (1 + ln(251 / 7)) of 251
    CHECK(s.mean_lifetime > 7);
  }
}
