// Linear attention in the place of softmax attention: the same projections, a state instead of keys and values
// (attention/linear.h). Where the model has a rotary embedding, queries and keys are turned by their positions in the
// document before the feature map (docs/attention.md).
#pragma once

#include <string>

#include "attention/linear.h"
#include "nn/mixer.h"

namespace sieve {

class LinearLayer final : public Mixer {
 public:
  LinearLayer(ParameterFactory& make, const std::string& name, const ModelConfig& config);

  Variable operator()(const Variable& x, const Variable& residual, const Documents& documents,
                      SelectionStats* stats) const override;
  std::unique_ptr<MixerState> start(std::int64_t batch, DType compute, std::int64_t max_tokens) const override;
  Variable extend(const Variable& x, const Variable& residual, MixerState& state) const override;

 private:
  Variable project(const Variable& x, const Documents& documents, std::int64_t position) const;  // qkv, turned

  LinearShape shape_;
  RopeSpec rope_;
  Linear qkv_, out_;
};

// A recurrence's state in generation; it holds no key and no value.
struct RecurrentState final : MixerState {
  RecurrentState(std::int64_t size) : bytes_(size) {}
  std::int64_t rows() const override { return 0; }
  std::int64_t bytes() const override { return bytes_; }

  Tensor state;             // made by the first step
  std::int64_t length = 0;  // positions that entered it, where a layer counts them

 private:
  std::int64_t bytes_;
};

}  // namespace sieve
