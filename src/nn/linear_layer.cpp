#include "nn/linear_layer.h"

#include "attention/rotate.h"

namespace sieve {

LinearLayer::LinearLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config)
    : shape_{config.n_heads, *config.n_kv_heads, *config.head_dim, *config.head_dim}, rope_(config.rope_spec()) {
  const bool bias = config.arch == Arch::gpt2;
  qkv_ = Linear(make, name + ".qkv", config.d_model, shape_.features(), bias, config.init.std);
  out_ = Linear(make, name + ".out", shape_.H * shape_.V, config.d_model, bias, residual_std(config));
}

Variable LinearLayer::project(const Variable& x, const Documents& documents, std::int64_t position) const {
  const Variable qkv = qkv_(x);
  if (rope_.rotary_dims == 0) return qkv;
  const std::int64_t turned = shape_.H + shape_.Hkv;  // values stay
  return rotate_first_heads(qkv, turned + shape_.Hkv, turned, rope_, documents.starts, position);
}

Variable LinearLayer::operator()(const Variable& x, const Variable& residual, const Documents& documents,
                                 SelectionStats*) const {
  return out_(linear_attention(project(x, documents, 0), shape_, documents.starts), residual);
}

std::unique_ptr<MixerState> LinearLayer::start(std::int64_t batch, DType compute, std::int64_t) const {
  const std::int64_t elements = batch * shape_.Hkv * shape_.D * (shape_.V + 1);
  return std::make_unique<RecurrentState>(elements * static_cast<std::int64_t>(size_of(compute_dtype(compute))));
}

Variable LinearLayer::extend(const Variable& x, const Variable& residual, MixerState& state) const {
  auto& own = dynamic_cast<RecurrentState&>(state);
  const Variable qkv = project(x, {}, own.length);
  own.length += x.size(1);
  return out_(Variable(linear_attention_extend(qkv.value(), shape_, {}, own.state)), residual);
}

}  // namespace sieve
