// The small modules: each owns its parameters and says how its input becomes its output. Letters: B batch, T time, C
// d_model, F d_ff.
#pragma once

#include <string>

#include "autograd/ops.h"
#include "nn/model_config.h"
#include "nn/parameter.h"

namespace sieve {

class Linear {
 public:
  Linear() = default;
  Linear(ParameterFactory& make, const std::string& name, std::int64_t in, std::int64_t out, bool bias, double std);
  Variable operator()(const Variable& x) const;                            // (..., in) -> (..., out)
  Variable operator()(const Variable& x, const Variable& residual) const;  // the same + residual, in one product
  Variable weight() const { return weight_->value; }
  Variable bias() const { return bias_ ? bias_->value : Variable(); }

 private:
  ParameterPtr weight_, bias_;
};

// LayerNorm (gpt2) or RMSNorm (llama).
class Norm {
 public:
  Norm() = default;
  Norm(ParameterFactory& make, const std::string& name, const ModelConfig& config);
  Variable operator()(const Variable& x) const;
  Variable weight() const { return weight_->value; }
  Variable bias() const { return bias_ ? bias_->value : Variable(); }  // LayerNorm alone has one
  double eps() const { return eps_; }

 private:
  ParameterPtr weight_, bias_;
  double eps_ = 0;
};

// gpt2: GELU (tanh form) between two products. llama: SwiGLU, gate and up in one product. The residual is added in the
// last product. keep_activation: whether backward finds GELU's output or makes it again.
class Mlp {
 public:
  Mlp() = default;
  Mlp(ParameterFactory& make, const std::string& name, const ModelConfig& config);
  Variable operator()(const Variable& x, const Variable& residual, bool keep_activation) const;
  const Linear& up() const { return up_; }
  const Linear& down() const { return down_; }

 private:
  Arch arch_ = Arch::llama;
  Linear up_, down_;
};

// Deviation of projections that write into the residual stream (Radford et al. 2019, section 2.3: scaled by
// 1/sqrt(residual layers)).
double residual_std(const ModelConfig& config);

}  // namespace sieve
