// Projections, scoring network and pattern of one layer's attention.
#pragma once

#include <optional>
#include <string>

#include "attention/attention.h"
#include "attention/decode.h"
#include "attention/evicted_keys.h"
#include "attention/pattern_cache.h"
#include "attention/timestep_norm.h"
#include "nn/mixer.h"

namespace sieve {

// A cache, and the statistics of its scores so far.
struct AttentionState final : MixerState {
  AttentionState(AttentionCache c, bool by_document) : cache(std::move(c)), by_document_(by_document) {}
  void meet(const Tensor& tokens) override;
  std::int64_t rows() const override { return cache.rows(); }
  std::int64_t bytes() const override {
    return cache.bytes() + (evicted ? evicted->bytes() : 0) +
           (last_number_.defined() ? static_cast<std::int64_t>(last_number_.nbytes()) : 0);
  }
  std::vector<std::int64_t> selected(std::int64_t batch, std::int64_t kv_head) const override {
    return cache.selected(batch, kv_head);
  }

  AttentionCache cache;
  RunningScore running;
  std::optional<EvictedKeys> evicted;  // linear: true of SparseK
  Tensor numbers;                      // of documents (B, n), between meet() and extend(), where scores are random

 private:
  bool by_document_;
  Tensor last_number_;  // (B), of the last position
};

// The same for kinds that show pairs.
struct PatternState final : MixerState {
  // shares: heads of the cache that stand for one key-value head of the model.
  PatternState(PatternCache c, std::int64_t shares = 1) : cache(std::move(c)), shares_(shares) {}
  std::int64_t rows() const override { return cache.rows() * shares_; }
  std::int64_t bytes() const override { return cache.bytes(); }

  PatternCache cache;

 private:
  std::int64_t shares_;
};

class AttentionLayer final : public Mixer {
 public:
  AttentionLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config, std::int64_t layer);

  Variable operator()(const Variable& x, const Variable& residual, const Documents& documents,
                      SelectionStats* stats) const override;
  std::unique_ptr<MixerState> start(std::int64_t batch, DType compute, std::int64_t max_tokens) const override;
  Variable extend(const Variable& x, const Variable& residual, MixerState& state) const override;

  const AttentionSpec& spec() const { return spec_; }
  const RopeSpec& rope() const { return rope_; }
  bool has_scorer() const { return score_weight_ != nullptr; }
  const Linear& qkv() const { return qkv_; }
  const Linear& out() const { return out_; }
  Variable score_weight() const { return score_weight_ ? score_weight_->value : Variable(); }
  Variable score_gain() const { return score_gain_ ? score_gain_->value : Variable(); }

 private:
  Variable scores(const Variable& x, const Documents& documents, AttentionState* state) const;
  Tensor extend_with_evicted(const Tensor& qkv, const Tensor& scores, AttentionState& state) const;

  AttentionSpec spec_;
  RopeSpec rope_;
  Linear qkv_, out_;
  std::int64_t score_heads_ = 0;
  ParameterPtr score_weight_, score_gain_;  // w (Hs, C); gain (Hs) where the scores are normalised
  ParameterPtr linear_gate_;                // (H) logits, where evicted keys go into a linear state
};

}  // namespace sieve
