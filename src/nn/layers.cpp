#include "nn/layers.h"

#include <cmath>

namespace sieve {

double residual_std(const ModelConfig& config) {
  return config.init.scale_residual ? config.init.std / std::sqrt(2.0 * static_cast<double>(config.n_layers))
                                    : config.init.std;
}

Linear::Linear(ParameterFactory& make, const std::string& name, std::int64_t in, std::int64_t out, bool bias,
               double std)
    : weight_(make.make(name + ".weight", {out, in}, {.std = std})),
      bias_(bias ? make.make(name + ".bias", {out}, {}) : nullptr) {}

Variable Linear::operator()(const Variable& x) const { return linear(x, weight(), bias()); }

Variable Linear::operator()(const Variable& x, const Variable& residual) const {
  return linear_add(x, weight(), bias(), residual);
}

Norm::Norm(ParameterFactory& make, const std::string& name, const ModelConfig& config)
    : weight_(make.make(name + ".weight", {config.d_model}, {.constant = 1})),
      bias_(config.arch == Arch::gpt2 ? make.make(name + ".bias", {config.d_model}, {}) : nullptr),
      eps_(config.norm_eps) {}

Variable Norm::operator()(const Variable& x) const {
  return bias_ ? layer_norm(x, weight_->value, bias_->value, eps_) : rms_norm(x, weight_->value, eps_);
}

Mlp::Mlp(ParameterFactory& make, const std::string& name, const ModelConfig& config) : arch_(config.arch) {
  const bool gpt2 = arch_ == Arch::gpt2;
  const std::int64_t hidden = *config.d_ff;
  up_ = Linear(make, name + ".up", config.d_model, gpt2 ? hidden : 2 * hidden, gpt2, config.init.std);
  down_ = Linear(make, name + ".down", hidden, config.d_model, gpt2, residual_std(config));
}

Variable Mlp::operator()(const Variable& x, const Variable& residual, bool keep_activation) const {
  if (arch_ == Arch::gpt2)
    return gelu_mlp(x, up_.weight(), up_.bias(), down_.weight(), down_.bias(), residual, keep_activation);
  return down_(swiglu(up_(x)), residual);
}

}  // namespace sieve
