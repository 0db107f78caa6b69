// What moves information between the positions of a block: attention of any kind, or a recurrence that stands for it.
// A kind with parameters or state of its own is a class here; those that differ only in which keys a query sees are one
// class, AttentionLayer. Letters: B batch, T time, C d_model.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "nn/layers.h"

namespace sieve {

// How a batch falls into documents, on the model's device.
struct Documents {
  Tensor starts;   // document_starts as in AttentionInputs, or undefined: a row is one
  Tensor numbers;  // document_numbers() (attention/random_scores.h) where a layer of the model wants them, or undefined
};

// What one layer keeps while it generates: B sequences of equal length.
class MixerState {
 public:
  virtual ~MixerState() = default;
  // The tokens that the next extend() appends, i32 (B, n) on the model's device: for layers that go by a document's
  // number.
  virtual void meet(const Tensor&) {}
  virtual std::int64_t rows() const = 0;   // key-value rows held per key-value head
  virtual std::int64_t bytes() const = 0;  // all that is held
  // Positions in the selected slots, ascending; empty where nothing is selected.
  virtual std::vector<std::int64_t> selected(std::int64_t, std::int64_t) const { return {}; }
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  // x (B, T, C), already normed -> residual + what was mixed, (B, T, C). `stats` is filled where keys are selected
  // by scores.
  virtual Variable operator()(const Variable& x, const Variable& residual, const Documents& documents,
                              SelectionStats* stats) const = 0;

  // Generation. max_tokens bounds the length (0: unbounded).
  virtual std::unique_ptr<MixerState> start(std::int64_t batch, DType compute, std::int64_t max_tokens) const = 0;
  // Appends x (B, n, C) to the state and returns the same for it. No gradient. Equals operator() at those positions of
  // one document up to rounding.
  virtual Variable extend(const Variable& x, const Variable& residual, MixerState& state) const = 0;
};

// The mixer of a resolved config's layer; its parameters are made under `name`.
std::unique_ptr<const Mixer> make_mixer(ParameterFactory& make, const std::string& name, const ModelConfig& config,
                                        std::int64_t layer);

}  // namespace sieve
