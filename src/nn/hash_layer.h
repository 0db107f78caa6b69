// Attention inside hash buckets (type hash): queries that are their own keys, and the buckets they fall into
// (docs/attention.md).
#pragma once

#include <string>

#include "nn/attention_layer.h"

namespace sieve {

class HashLayer final : public Mixer {
 public:
  HashLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config, std::int64_t layer);

  Variable operator()(const Variable& x, const Variable& residual, const Documents& documents,
                      SelectionStats* stats) const override;
  std::unique_ptr<MixerState> start(std::int64_t batch, DType compute, std::int64_t max_tokens) const override;
  Variable extend(const Variable& x, const Variable& residual, MixerState& state) const override;

 private:
  Variable qkv(const Variable& x) const;

  AttentionSpec spec_;  // every query head has a key of its own: n_kv_heads = n_heads
  RopeSpec rope_;
  std::int64_t value_heads_;
  Linear qv_, out_;
};

}  // namespace sieve
