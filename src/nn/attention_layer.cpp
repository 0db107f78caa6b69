#include "nn/attention_layer.h"

#include "attention/choose.h"
#include "attention/random_scores.h"

namespace sieve {

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
}

// (B, Hs, T), fp32 from the product on. `state`: of a generation, which goes on where it stands.
Variable AttentionLayer::scores(const Variable& x, const Tensor& document_starts, AttentionState* state) const {
  if (spec_.sparsek.random_scores) {
    const RandomScores what{.seed = spec_.pattern.seed, .first_position = state ? state->cache.length() : 0};
    return Variable(random_scores(x.size(0), score_heads_, x.size(1), what, document_starts, x.value().stream()));
  }
  if (!has_scorer()) return {};
  // A frozen scorer neither learns nor teaches: through it the layers below would learn what to mark, and it would be
  // no control.
  const Variable in = score_weight_->trainable ? x : Variable(x.value());
  const Variable s = score(in, score_weight_->value);
  if (!score_gain_) return s;
  if (state) return Variable(timestep_norm_extend(s.value(), score_gain_->value.value(), state->running));
  return timestep_norm(s, score_gain_->value, document_starts);
}

Variable AttentionLayer::operator()(const Variable& x, const Variable& residual, const Tensor& document_starts,
                                    SelectionStats* stats) const {
  const AttentionInputs inputs{.spec = spec_, .rope = rope_, .document_starts = document_starts};
  return out_(attention(qkv_(x), scores(x, document_starts, nullptr), inputs, has_scorer() ? stats : nullptr),
              residual);
}

std::unique_ptr<MixerState> AttentionLayer::start(std::int64_t batch, DType compute, std::int64_t max_tokens) const {
  if (shows_pairs(spec_.kind))
    return std::make_unique<PatternState>(PatternCache(spec_, rope_, batch, compute, max_tokens, next_choice(spec_)));
  return std::make_unique<AttentionState>(AttentionCache(spec_, rope_, batch, compute, max_tokens, score_heads_));
}

Variable AttentionLayer::extend(const Variable& x, const Variable& residual, MixerState& state) const {
  if (auto* pattern = dynamic_cast<PatternState*>(&state))
    return out_(Variable(pattern->cache.step(qkv_(x).value())), residual);
  auto& own = dynamic_cast<AttentionState&>(state);
  return out_(Variable(own.cache.step(qkv_(x).value(), scores(x, {}, &own).value())), residual);
}

}  // namespace sieve
