// Native sparse attention (type nsa; docs/attention.md): three branches with keys and values of their own, each with a
// softmax of its own, joined by gates that the token computes. Letters: B batch, T time, C d_model, H query heads, Hkv
// key-value heads, D head size, l compress_block, s compress_stride, M compressed keys.
#pragma once

#include <string>

#include "nn/attention_layer.h"

namespace sieve {

// l keys (or values) of a head to one: a product with l places, GELU, a product; the l rows are those of a projection
// of its own, each plus what was learned for its place. Shared by the layer's heads.
class Compressor {
 public:
  Compressor() = default;
  Compressor(ParameterFactory& make, const std::string& name, const ModelConfig& config, const AttentionSpec& spec);
  Variable project(const Variable& x) const { return project_(x); }  // (B, T, C) -> (B, T, Hkv D)
  // (B, T, Hkv D) -> (B, Hkv, M, D), as compress_rows() lays them out.
  Variable compress(const Variable& rows, const Tensor& document_starts = {}) const;

 private:
  std::int64_t heads_ = 0;
  PatternSpec pattern_;
  Linear project_, up_, down_;
  ParameterPtr places_;  // (l, D)
};

// The compressed rows of a generation, and the projected rows that later ones still want.
struct CompressedRows {
  Tensor rows, tail;  // (B, Hkv, capacity, D), (B, fewer than l, Hkv D); undefined before the first of them
  std::int64_t count = 0, most = 0;  // most: that will ever be kept, 0 if nobody knows

  void append(const Compressor& compressor, const Variable& x, const PatternSpec& pattern);
  // Kept, (B, Hkv, count, D); before the first of them as many heads and features as `spec` says.
  Variable kept(const AttentionSpec& spec, const Tensor& like) const;
  std::int64_t capacity() const;
  std::int64_t bytes() const;
};

struct NsaState final : MixerState {
  NsaState(PatternCache s, AttentionCache w) : selected_branch(std::move(s)), window_branch(std::move(w)) {}
  std::int64_t rows() const override;
  std::int64_t bytes() const override;

  PatternCache selected_branch;
  AttentionCache window_branch;
  CompressedRows keys, values;
};

class NsaLayer final : public Mixer {
 public:
  NsaLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config, std::int64_t layer);

  Variable operator()(const Variable& x, const Variable& residual, const Documents& documents,
                      SelectionStats* stats) const override;
  std::unique_ptr<MixerState> start(std::int64_t batch, DType compute, std::int64_t max_tokens) const override;
  Variable extend(const Variable& x, const Variable& residual, MixerState& state) const override;

 private:
  AttentionSpec spec_, selected_spec_, window_spec_;
  RopeSpec rope_;
  Linear q_, selected_, window_, gates_, out_;
  Compressor keys_, values_;
};

}  // namespace sieve
