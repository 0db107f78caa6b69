// Gated linear attention with its gates, norm and output gate (Yang et al. 2023, arXiv 2312.06635, section 4.4). Half
// as many heads as the model's, of D features of a query or key and 2 D of a value, so that its products have as many
// weights as those of full attention with d_model = n_heads head_dim: q, k half as wide, v, output gate and output
// whole. Letters: H heads here, D head_dim of the model.
#pragma once

#include <string>

#include "attention/linear.h"
#include "nn/mixer.h"

namespace sieve {

inline constexpr std::int64_t kGlaGateRank = 16;  // of the gates' product

class GlaLayer final : public Mixer {
 public:
  GlaLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config);

  Variable operator()(const Variable& x, const Variable& residual, const Documents& documents,
                      SelectionStats* stats) const override;
  std::unique_ptr<MixerState> start(std::int64_t batch, DType compute, std::int64_t max_tokens) const override;
  Variable extend(const Variable& x, const Variable& residual, MixerState& state) const override;

 private:
  Variable gates(const Variable& x) const { return gate_up_(gate_down_(x)); }
  // Norm of each head, output gate, output: from what the recurrence gave, (B, T, H 2D).
  Variable finish(const Variable& mixed, const Variable& x, const Variable& residual) const;

  LinearShape shape_;
  double norm_eps_;
  Linear qkv_, gate_down_, gate_up_, out_gate_, out_;
  ParameterPtr norm_;  // (2 D), shared by the heads
};

}  // namespace sieve
