#include "nn/gla_layer.h"

#include "autograd/ops.h"
#include "core/error.h"
#include "nn/linear_layer.h"

namespace sieve {

GlaLayer::GlaLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config)
    : norm_eps_(config.norm_eps) {
  if (config.n_heads % 2 != 0)
    fail(Exit::config, "model.n_heads", config.n_heads, " is odd: type gla has half as many heads");
  const std::int64_t H = config.n_heads / 2, D = *config.head_dim, C = config.d_model;
  shape_ = {H, H, D, 2 * D};
  const double std = config.init.std;
  qkv_ = Linear(make, name + ".qkv", C, shape_.features(), false, std);
  gate_down_ = Linear(make, name + ".gate_down", C, kGlaGateRank, false, std);
  gate_up_ = Linear(make, name + ".gate_up", kGlaGateRank, H * D, true, std);
  out_gate_ = Linear(make, name + ".out_gate", C, H * 2 * D, false, std);
  norm_ = make.make(name + ".norm.weight", {2 * D}, {.constant = 1});
  out_ = Linear(make, name + ".out", H * 2 * D, C, false, residual_std(config));
}

Variable GlaLayer::finish(const Variable& mixed, const Variable& x, const Variable& residual) const {
  const Shape whole = mixed.shape(), heads{whole[0], whole[1], shape_.H, shape_.V};
  const Variable normed = reshape(rms_norm(reshape(mixed, heads), norm_->value, norm_eps_), whole);
  return out_(silu_gate(normed, out_gate_(x)), residual);
}

Variable GlaLayer::operator()(const Variable& x, const Variable& residual, const Documents& documents,
                              SelectionStats*) const {
  return finish(gated_linear_attention(qkv_(x), gates(x), shape_, documents.starts), x, residual);
}

std::unique_ptr<MixerState> GlaLayer::start(std::int64_t batch, DType compute, std::int64_t) const {
  const std::int64_t elements = batch * shape_.Hkv * shape_.D * shape_.V;
  return std::make_unique<RecurrentState>(elements * static_cast<std::int64_t>(size_of(compute_dtype(compute))));
}

Variable GlaLayer::extend(const Variable& x, const Variable& residual, MixerState& state) const {
  Tensor& own = dynamic_cast<RecurrentState&>(state).state;
  return finish(Variable(gated_linear_attention_extend(qkv_(x).value(), gates(x).value(), shape_, own)), x, residual);
}

}  // namespace sieve
