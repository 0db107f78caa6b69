#include "nn/hash_layer.h"

#include "attention/choose.h"
#include "attention/pattern.h"
#include "attention/shared_qk.h"

namespace sieve {

HashLayer::HashLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config, std::int64_t layer)
    : spec_(config.attention_spec(layer)), rope_(config.rope_spec()), value_heads_(spec_.n_kv_heads) {
  const bool bias = config.arch == Arch::gpt2;
  spec_.n_kv_heads = spec_.n_heads;
  qv_ = Linear(make, name + ".qv", config.d_model, (spec_.n_heads + value_heads_) * spec_.head_dim, bias,
               config.init.std);
  out_ = Linear(make, name + ".out", spec_.n_heads * spec_.head_dim, config.d_model, bias, residual_std(config));
}

Variable HashLayer::qkv(const Variable& x) const {
  return shared_qk(qv_(x), spec_.n_heads, value_heads_, spec_.head_dim);
}

Variable HashLayer::operator()(const Variable& x, const Variable& residual, const Documents& documents,
                               SelectionStats*) const {
  const AttentionInputs inputs{.spec = spec_, .rope = rope_, .document_starts = documents.starts};
  return out_(pattern_attention(qkv(x), {}, inputs), residual);
}

std::unique_ptr<MixerState> HashLayer::start(std::int64_t batch, DType compute, std::int64_t max_tokens) const {
  return std::make_unique<PatternState>(PatternCache(spec_, rope_, batch, compute, max_tokens),
                                        spec_.n_heads / value_heads_);
}

Variable HashLayer::extend(const Variable& x, const Variable& residual, MixerState& state) const {
  const Tensor in = qkv(x).value();
  const Tensor buckets = hash_buckets(in.slice(2, 0, spec_.n_heads * spec_.head_dim), spec_);
  return out_(Variable(dynamic_cast<PatternState&>(state).cache.step(in, buckets)), residual);
}

}  // namespace sieve
