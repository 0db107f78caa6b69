// Projections, scoring network and pattern of one layer's attention.
#pragma once

#include <string>

#include "attention/attention.h"
#include "attention/decode.h"
#include "attention/timestep_norm.h"
#include "nn/layers.h"

namespace sieve {

class AttentionLayer {
 public:
  AttentionLayer() = default;
  AttentionLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config, std::int64_t layer);

  // x (B, T, C), already normed -> residual + attention, (B, T, C). document_starts as in AttentionInputs. `stats` is
  // filled for SparseK layers.
  Variable operator()(const Variable& x, const Variable& residual, const Tensor& document_starts,
                      SelectionStats* stats) const;

  // Generation: appends x (B, T, C) to the caches and returns the same for it. No gradient.
  Variable extend(const Variable& x, const Variable& residual, AttentionCache& cache, RunningScore& running) const;

  const AttentionSpec& spec() const { return spec_; }
  const RopeSpec& rope() const { return rope_; }
  bool has_scorer() const { return score_weight_ != nullptr; }
  const Linear& qkv() const { return qkv_; }
  const Linear& out() const { return out_; }
  Variable score_weight() const { return score_weight_ ? score_weight_->value : Variable(); }
  Variable score_gain() const { return score_gain_ ? score_gain_->value : Variable(); }

 private:
  Variable scores(const Variable& x, const Tensor& document_starts, RunningScore* running) const;

  AttentionSpec spec_;
  RopeSpec rope_;
  Linear qkv_, out_;
  ParameterPtr score_weight_, score_gain_;  // w (Hs, C); gain (Hs) where the scores are normalised
};

}  // namespace sieve
