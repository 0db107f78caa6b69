#include "nn/attention_layer.h"

#include <utility>

#include "attention/choose.h"
#include "attention/random_scores.h"

namespace sieve {
namespace {

constexpr double kLinearGateStart = -4;  // sigmoid: 0.018, so that a converted model begins near what it was

}  // namespace

AttentionLayer::AttentionLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config,
                               std::int64_t layer)
    : spec_(config.attention_spec(layer)), rope_(config.rope_spec()) {
  const bool bias = config.arch == Arch::gpt2;
  qkv_ = Linear(make, name + ".qkv", config.d_model, spec_.qkv_features(), bias, config.init.std);
  out_ = Linear(make, name + ".out", spec_.n_heads * spec_.head_dim, config.d_model, bias, residual_std(config));
  score_heads_ = config.score_heads(layer);
  if (score_heads_ > 0 && !spec_.sparsek.random_scores) {
    const ScoreConfig& score = config.kind_of_layer(layer).score;
    score_weight_ =
        make.make_scorer(name + ".sparsek.score.weight", {score_heads_, config.d_model}, {.std = *score.init_std});
    if (score.norm == ScoreNorm::timestep)
      score_gain_ = make.make_scorer(name + ".sparsek.score.gain", {score_heads_}, {.constant = 1});
  }
  if (spec_.sparsek.linear)
    linear_gate_ = make.make(name + ".sparsek.linear.gate", {spec_.n_heads}, {.constant = kLinearGateStart});
}

void AttentionState::meet(const Tensor& tokens) {
  if (!by_document_) return;
  numbers = document_numbers(tokens, {}, cache.length(), last_number_);
  last_number_ = numbers.slice(1, tokens.size(1) - 1, tokens.size(1)).clone().flatten();
}

// (B, Hs, T), fp32 from the product on. `state`: of a generation, which goes on where it stands.
Variable AttentionLayer::scores(const Variable& x, const Documents& documents, AttentionState* state) const {
  if (spec_.sparsek.random_scores) {
    const RandomScores what{.seed = spec_.pattern.seed, .first_position = state ? state->cache.length() : 0};
    const Tensor numbers = state ? std::move(state->numbers) : documents.numbers;  // a prompt's are not kept
    require(numbers.defined() && numbers.shape() == Shape{x.size(0), x.size(1)}, "random rows",
            "want the numbers of the documents: the decoder and the generation make them from the tokens");
    return Variable(random_scores(numbers, score_heads_, what, documents.starts));
  }
  if (!has_scorer()) return {};
  // A frozen scorer neither learns nor teaches: through it the layers below would learn what to mark, and it would be
  // no control.
  const Variable in = score_weight_->trainable ? x : Variable(x.value());
  const Variable s = score(in, score_weight_->value);
  if (!score_gain_) return s;
  if (state) return Variable(timestep_norm_extend(s.value(), score_gain_->value.value(), state->running));
  return timestep_norm(s, score_gain_->value, documents.starts);
}

Variable AttentionLayer::operator()(const Variable& x, const Variable& residual, const Documents& documents,
                                    SelectionStats* stats) const {
  const AttentionInputs inputs{.spec = spec_, .rope = rope_, .document_starts = documents.starts};
  const Variable qkv = qkv_(x);
  SelectionLives lives;
  const Variable seen = attention(qkv, scores(x, documents, nullptr), inputs, score_heads_ > 0 ? stats : nullptr,
                                  linear_gate_ ? &lives : nullptr);
  if (!linear_gate_) return out_(seen, residual);
  const KeyExits exits = key_exits(lives.from, lives.to, spec_.window, documents.starts);
  const LinearShape shape{spec_.n_heads, spec_.n_kv_heads, spec_.head_dim, spec_.head_dim};
  const Variable evicted = linear_attention(qkv, shape, documents.starts, exits);
  return out_(add_gated_heads(seen, evicted, linear_gate_->value), residual);
}

std::unique_ptr<MixerState> AttentionLayer::start(std::int64_t batch, DType compute, std::int64_t max_tokens) const {
  if (shows_pairs(spec_.kind))
    return std::make_unique<PatternState>(PatternCache(spec_, rope_, batch, compute, max_tokens, next_choice(spec_)));
  auto state = std::make_unique<AttentionState>(AttentionCache(spec_, rope_, batch, compute, max_tokens, score_heads_),
                                                spec_.sparsek.random_scores);
  if (linear_gate_) state->evicted.emplace(spec_, rope_, batch, score_heads_);
  return state;
}

// After the first prompt one position after the other: the linear state reads rows before the cache overwrites them.
Tensor AttentionLayer::extend_with_evicted(const Tensor& qkv, const Tensor& scores, AttentionState& state) const {
  const std::int64_t n = qkv.size(1), each = state.cache.length() == 0 ? n : 1;
  Tensor out = empty({qkv.size(0), n, spec_.n_heads * spec_.head_dim}, qkv.dtype(), qkv.stream());
  for (std::int64_t t = 0; t < n; t += each) {
    const Tensor part = qkv.slice(1, t, t + each).contiguous(), s = scores.slice(2, t, t + each).contiguous();
    const Variable evicted(state.evicted->step(state.cache, part, s)), seen(state.cache.step(part, s));
    out.slice(1, t, t + each).copy_from(add_gated_heads(seen, evicted, Variable(linear_gate_->value.value())).value());
  }
  return out;
}

Variable AttentionLayer::extend(const Variable& x, const Variable& residual, MixerState& state) const {
  if (auto* pattern = dynamic_cast<PatternState*>(&state))
    return out_(Variable(pattern->cache.step(qkv_(x).value())), residual);
  auto& own = dynamic_cast<AttentionState&>(state);
  const Tensor qkv = qkv_(x).value(), s = scores(x, {}, &own).value();
  return out_(Variable(own.evicted ? extend_with_evicted(qkv, s, own) : own.cache.step(qkv, s)), residual);
}

}  // namespace sieve
