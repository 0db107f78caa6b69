// The decoder-only transformer. One class for every recipe and every attention pattern: x + attention(norm1 x), then x
// + mlp(norm2 x). Letters: B batch, T time, C d_model, V vocabulary, N = B T rows.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "nn/mixer.h"

namespace sieve {

// Which parts are run again in backward instead of being kept (autograd/variable.h, recompute).
struct RecomputeConfig {
  bool attention = false, mlp = false;
  std::int64_t activations = 0;      // layers whose GELU is
  std::vector<std::int64_t> layers;  // whole blocks
  void fields(FieldVisitor& v);
};

struct DecoderOptions {
  DType compute = DType::f32;  // f32 | bf16 (fp32 master weights) | f64 (oracle)
  std::uint64_t seed = 0;
  RecomputeConfig recompute;
  bool shapes_only = false;  // weights to be counted, not used: no memory
};

// One micro-batch. targets -1 are ignored; document_starts as in AttentionInputs, or undefined.
struct TokenBatch {
  Tensor tokens;           // i32 (B, T)
  Tensor targets;          // i32 (B, T), may be undefined where no loss is asked for
  Tensor document_starts;  // i32 (B, T) or undefined
};

class AttentionLayer;

class Block {
 public:
  Block(ParameterFactory& make, const ModelConfig& config, std::int64_t layer);
  Variable operator()(const Variable& x, const Documents& documents, const RecomputeConfig& recompute,
                      SelectionStats* stats) const;
  Variable extend(const Variable& x, MixerState& state) const;
  const Mixer& mixer() const { return *mixer_; }
  const AttentionLayer* attention() const;  // the mixer, where it is one; else null
  const Norm& norm1() const { return norm1_; }
  const Norm& norm2() const { return norm2_; }
  const Mlp& mlp() const { return mlp_; }

 private:
  std::int64_t layer_;
  Norm norm1_, norm2_;
  std::unique_ptr<const Mixer> mixer_;
  Mlp mlp_;
};

class Decoder {
 public:
  Decoder(const ModelConfig& resolved, const DecoderOptions& options);

  // Token ids may lie on the CPU or with the model: they are moved where they are needed. Results lie with the model.
  //
  // Sum of the losses of all targets >= 0, (). `losses` receives every row's loss, fp32 (N); `stats` one entry per
  // layer.
  Variable loss_sum(const TokenBatch& batch, Tensor* losses = nullptr,
                    std::vector<SelectionStats>* stats = nullptr) const;
  // (B, T, V) in the compute dtype's accumulator (fp32 for bf16 models: not rounded again). Records nothing.
  Tensor logits(const Tensor& tokens, const Tensor& document_starts = {}) const;

  // The logits of some rows alone: rows i32 (n), places in the flattened (B, T) -> (n, V). For models asked at few
  // places.
  Tensor logits_at(const Tensor& tokens, const Tensor& rows) const;

  // All logits, a chunk of at most `rows` positions at a time, from position `begin` of one sequence tokens (1, T) on:
  // visit(first position, logits (1, n, V)). For sequences whose logits would fill the memory.
  void visit_logits(const Tensor& tokens, std::int64_t begin, std::int64_t rows,
                    const std::function<void(std::int64_t, const Tensor&)>& visit) const;

  const std::vector<ParameterPtr>& parameters() const { return parameters_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  DType compute_dtype() const { return options_.compute; }
  const Stream& stream() const { return token_embedding_->master.stream(); }  // where the model lives and computes

 private:
  friend class Generation;
  friend class TokenGraph;
  Variable embed(const Tensor& tokens, std::int64_t position) const;
  Tensor head_logits(const Tensor& x) const;
  Variable hidden(const Tensor& tokens, const Tensor& document_starts, std::vector<SelectionStats>* stats) const;

  ModelConfig config_;
  DecoderOptions options_;
  bool numbers_documents_ = false;                            // a layer goes by what its document is
  ParameterPtr token_embedding_, position_embedding_, head_;  // head_ is the token embedding when tied
  std::vector<Block> blocks_;
  Norm final_norm_;
  std::vector<ParameterPtr> parameters_;
};

}  // namespace sieve
