// Letters: B batch, n new tokens, C d_model, Hi index heads, Di features of one.
#include "nn/indexer_layer.h"

#include <algorithm>
#include <cmath>

#include "attention/pattern.h"
#include "attention/rotate.h"

namespace sieve {
namespace {

constexpr double kIndexNormEps = 1e-5;

// Index heads turn by the angles of the first pairs of a head, as many as they have room for.
RopeSpec index_rope(const RopeSpec& rope, std::int64_t index_dim) {
  return {.rotary_dims = std::min(rope.rotary_dims, index_dim / 2 * 2), .theta = rope.theta};
}

// Room for `tokens` keys; what is there stays.
void reserve(Tensor& keys, std::int64_t held, std::int64_t tokens, const Tensor& like) {
  const std::int64_t capacity = keys.defined() ? keys.size(2) : 0;
  if (tokens <= capacity) return;
  std::int64_t wanted = std::max<std::int64_t>(64, capacity);
  while (wanted < tokens) wanted *= 2;
  Tensor grown = zeros({like.size(0), 1, wanted, like.size(3)}, like.dtype(), like.stream());
  if (held > 0) grown.slice(2, 0, held).copy_from(keys.slice(2, 0, held));
  keys = grown;
}

}  // namespace

std::int64_t IndexerState::bytes() const {
  return cache.bytes() + (index_keys.defined() ? static_cast<std::int64_t>(index_keys.nbytes()) : 0);
}

IndexerLayer::IndexerLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config,
                           std::int64_t layer)
    : spec_(config.attention_spec(layer)),
      rope_(config.rope_spec()),
      index_rope_(index_rope(rope_, spec_.pattern.index_dim)) {
  const bool bias = config.arch == Arch::gpt2;
  const std::int64_t C = config.d_model, Hi = spec_.pattern.index_heads, Di = spec_.pattern.index_dim;
  qkv_ = Linear(make, name + ".qkv", C, spec_.qkv_features(), bias, config.init.std);
  out_ = Linear(make, name + ".out", spec_.n_heads * spec_.head_dim, C, bias, residual_std(config));
  index_q_ = Linear(make, name + ".index.q", C, Hi * Di, false, config.init.std);
  index_k_ = Linear(make, name + ".index.k", C, Di, false, config.init.std);
  index_norm_ = make.make(name + ".index.norm.weight", {Di}, {.constant = 1});
  index_bias_ = make.make(name + ".index.norm.bias", {Di}, {});
  index_weights_ = make.make(name + ".index.weights", {Hi, C}, {.std = config.init.std});
}

IndexInputs IndexerLayer::index(const Variable& x, std::int64_t position) const {
  const Variable in(x.value());  // no gradient to the trunk
  const std::int64_t Hi = spec_.pattern.index_heads, Di = spec_.pattern.index_dim;
  const Variable k = layer_norm(index_k_(in), index_norm_->value, index_bias_->value, kIndexNormEps);
  return {.q = rotate_heads(index_q_(in), Hi, index_rope_, position),
          .k = rotate_heads(k, 1, index_rope_, position),
          .weights = scale(score(in, index_weights_->value), 1 / std::sqrt(static_cast<double>(Hi * Di)))};
}

Variable IndexerLayer::operator()(const Variable& x, const Variable& residual, const Documents& documents,
                                  SelectionStats*) const {
  const AttentionInputs inputs{.spec = spec_, .rope = rope_, .document_starts = documents.starts};
  const IndexInputs scored = index(x, 0);
  const Tensor choice = index_choice(scored, spec_.pattern.k, documents.starts);
  const Variable qkv = qkv_(x);
  Variable mixed = pattern_attention(qkv, choice, inputs);
  if (grad_enabled()) mixed = with_loss(mixed, index_loss(scored, choice, qkv.value(), inputs));
  return out_(mixed, residual);
}

std::unique_ptr<MixerState> IndexerLayer::start(std::int64_t batch, DType compute, std::int64_t max_tokens) const {
  return std::make_unique<IndexerState>(PatternCache(spec_, rope_, batch, compute, max_tokens));
}

Variable IndexerLayer::extend(const Variable& x, const Variable& residual, MixerState& state) const {
  auto& own = dynamic_cast<IndexerState&>(state);
  const std::int64_t held = own.cache.length(), tokens = held + x.size(1);
  IndexInputs scored = index(x, held);
  const Tensor& fresh = scored.k.value();
  reserve(own.index_keys, held, tokens, fresh);
  own.index_keys.slice(2, held, tokens).copy_from(fresh);
  scored.k = Variable(own.index_keys.slice(2, 0, tokens));
  const Tensor choice = index_choice(scored, spec_.pattern.k);
  return out_(Variable(own.cache.step(qkv_(x).value(), choice)), residual);
}

}  // namespace sieve
