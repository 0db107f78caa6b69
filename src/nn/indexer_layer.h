// Attention to the keys that a token indexer chooses (type dsa; docs/attention.md). The indexer reads the layer's input
// without a gradient to it, and learns from a loss of its own.
#pragma once

#include <string>

#include "attention/indexer.h"
#include "nn/attention_layer.h"

namespace sieve {

// A cache, and the index keys of all positions so far.
struct IndexerState final : MixerState {
  IndexerState(PatternCache c) : cache(std::move(c)) {}
  std::int64_t rows() const override { return cache.rows(); }
  std::int64_t bytes() const override;

  PatternCache cache;
  Tensor index_keys;  // (B, 1, capacity, Di), rotated; undefined before the first token
};

class IndexerLayer final : public Mixer {
 public:
  IndexerLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config, std::int64_t layer);

  Variable operator()(const Variable& x, const Variable& residual, const Documents& documents,
                      SelectionStats* stats) const override;
  std::unique_ptr<MixerState> start(std::int64_t batch, DType compute, std::int64_t max_tokens) const override;
  Variable extend(const Variable& x, const Variable& residual, MixerState& state) const override;

 private:
  // What the indexer scores of x (B, n, C), whose first position is `position`; its keys are those of x alone.
  IndexInputs index(const Variable& x, std::int64_t position) const;

  AttentionSpec spec_;
  RopeSpec rope_, index_rope_;
  Linear qkv_, out_, index_q_, index_k_;
  ParameterPtr index_norm_, index_bias_;  // LayerNorm of the index keys (Di)
  ParameterPtr index_weights_;            // (Hi, C): the weights of the index heads
};

}  // namespace sieve
