#include "nn/linear_layer.h"

namespace sieve {

LinearLayer::LinearLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config)
    : shape_{config.n_heads, *config.n_kv_heads, *config.head_dim, *config.head_dim} {
  const bool bias = config.arch == Arch::gpt2;
  qkv_ = Linear(make, name + ".qkv", config.d_model, shape_.features(), bias, config.init.std);
  out_ = Linear(make, name + ".out", shape_.H * shape_.V, config.d_model, bias, residual_std(config));
}

Variable LinearLayer::operator()(const Variable& x, const Variable& residual, const Documents& documents,
                                 SelectionStats*) const {
  return out_(linear_attention(qkv_(x), shape_, documents.starts), residual);
}

std::unique_ptr<MixerState> LinearLayer::start(std::int64_t batch, DType compute, std::int64_t) const {
  const std::int64_t elements = batch * shape_.Hkv * shape_.D * (shape_.V + 1);
  return std::make_unique<RecurrentState>(elements * static_cast<std::int64_t>(size_of(compute_dtype(compute))));
}

Variable LinearLayer::extend(const Variable& x, const Variable& residual, MixerState& state) const {
  Tensor& own = dynamic_cast<RecurrentState&>(state).state;
  return out_(Variable(linear_attention_extend(qkv_(x).value(), shape_, {}, own)), residual);
}

}  // namespace sieve
