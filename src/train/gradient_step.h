// The gradient of one global batch: this rank's micro-batches forward and backward, gradients leaving through leaf
// hooks into the reducer while backward still runs, and the small numbers of the step reduced with them.
#pragma once

#include <cstdint>
#include <exception>
#include <vector>

#include "data/loader.h"
#include "dist/reducer.h"
#include "dist/step_summary.h"
#include "nn/decoder.h"

namespace sieve {

class GradientStep {
 public:
  // Hooks the trainable parameters of `model`; one GradientStep a model. accumulation: micro-batches of this rank.
  GradientStep(const Decoder& model, Communicator& comm, const ReducerOptions& options, std::int64_t accumulation);
  ~GradientStep();
  GradientStep(const GradientStep&) = delete;
  GradientStep& operator=(const GradientStep&) = delete;

  // Sums over all tokens of the batch: divide by the summary's token count. The summary is the same on every rank. A
  // failure of one rank that it survived (a data error, memory) is thrown on all. `stats`, if given, receives the
  // selection statistics of the first micro-batch.
  StepSummary run(Loader& loader, StepFlags flags, std::vector<SelectionStats>* stats);

  const std::vector<ParameterPtr>& parameters() const { return parameters_; }  // trainable
  std::vector<Tensor> gradients() const;  // of the last run, parameter by parameter
  const ReducerStats& reducer_stats() const { return reducer_.stats(); }

 private:
  double micro_batch(Loader& loader, StepSummary& summary, std::vector<SelectionStats>* stats);

  const Decoder& model_;
  Communicator& comm_;
  std::vector<ParameterPtr> parameters_;
  GradientReducer reducer_;
  std::int64_t accumulation_;
};

}  // namespace sieve
