#include "nn/attention_layer.h"

namespace sieve {

AttentionLayer::AttentionLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config,
                               std::int64_t layer)
    : spec_(config.attention_spec(layer)), rope_(config.rope_spec()) {
  const bool bias = config.arch == Arch::gpt2;
  qkv_ = Linear(make, name + ".qkv", config.d_model, spec_.qkv_features(), bias, config.init.std);
  out_ = Linear(make, name + ".out", spec_.n_heads * spec_.head_dim, config.d_model, bias, residual_std(config));
  if (const std::int64_t heads = config.score_heads(layer); heads > 0) {
    const ScoreConfig& score = config.kind_of_layer(layer).score;
    score_weight_ = make.make_scorer(name + ".sparsek.score.weight", {heads, config.d_model}, {.std = *score.init_std});
    if (score.norm == ScoreNorm::timestep)
      score_gain_ = make.make_scorer(name + ".sparsek.score.gain", {heads}, {.constant = 1});
  }
}

// (B, Hs, T), fp32 from the product on. `running` carries the normalisation's statistics through a generation.
Variable AttentionLayer::scores(const Variable& x, const Tensor& document_starts, RunningScore* running) const {
  if (!has_scorer()) return {};
  // A frozen scorer neither learns nor teaches: through it the layers below would learn what to mark, and it would be
  // no control.
  const Variable in = score_weight_->trainable ? x : Variable(x.value());
  const Variable s = score(in, score_weight_->value);
  if (!score_gain_) return s;
  if (running) return Variable(timestep_norm_extend(s.value(), score_gain_->value.value(), *running));
  return timestep_norm(s, score_gain_->value, document_starts);
}

Variable AttentionLayer::operator()(const Variable& x, const Variable& residual, const Tensor& document_starts,
                                    SelectionStats* stats) const {
  const AttentionInputs inputs{.spec = spec_, .rope = rope_, .document_starts = document_starts};
  return out_(attention(qkv_(x), scores(x, document_starts, nullptr), inputs, has_scorer() ? stats : nullptr),
              residual);
}

Variable AttentionLayer::extend(const Variable& x, const Variable& residual, AttentionCache& cache,
                                RunningScore& running) const {
  return out_(Variable(cache.step(qkv_(x).value(), scores(x, {}, &running).value())), residual);
}

}  // namespace sieve
