// The gradient of one global batch: this rank's micro-batches forward and backward, gradients leaving through leaf
// hooks into the reducer while backward still runs, and the small numbers of the step reduced with them. Everything is
// queued on the model's stream: a GPU has its update before the host has seen a number of the step.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <vector>

#include "data/loader.h"
#include "dist/reducer.h"
#include "dist/step_summary.h"
#include "nn/decoder.h"
#include "tensor/staging.h"

namespace sieve {

class GradientStep {
 public:
  // Applies a gradient (flat: GradientReducer::layout) by control (AdamWArgs::control: divides by the tokens of the
  // global batch, clips, forbids what is not finite). Called once a step on every rank, whatever happened.
  using Update = std::function<void(const Tensor& gradient, const Tensor& control)>;

  // Hooks the trainable parameters of `model`, where it lives now; one GradientStep a model. accumulation:
  // micro-batches of this rank.
  GradientStep(const Decoder& model, Communicator& comm, const ReducerOptions& options, std::int64_t accumulation);
  ~GradientStep();
  GradientStep(const GradientStep&) = delete;
  GradientStep& operator=(const GradientStep&) = delete;

  // Sums over all tokens of the batch: divide by the summary's token count. The summary is the same on every rank. A
  // failure of one rank that it survived (a data error, memory) is thrown on all. `stats`, if given, receives the
  // selection statistics of the first micro-batch. `update` was allowed to act where flags.nonfinite is not set; the
  // norm that it clips to `clip` (0: never) is that of the mean over tokens.
  StepSummary run(Loader& loader, StepFlags flags, std::vector<SelectionStats>* stats, double clip = 0,
                  const Update& update = {});

  const std::vector<ParameterPtr>& parameters() const { return parameters_; }  // trainable
  std::vector<Tensor> gradients() const;  // of the last run, parameter by parameter
  const ReducerStats& reducer_stats() const { return reducer_.stats(); }

 private:
  void micro_batch(std::int64_t index, Loader& loader, StepSummary& summary, std::vector<SelectionStats>* stats);
  void keep_pace(std::int64_t index);
  void decide(double tokens, double clip);
  void read_numbers(StepSummary& mine);

  const Decoder& model_;
  Communicator& comm_;
  std::vector<ParameterPtr> parameters_;
  GradientReducer reducer_;
  std::int64_t accumulation_;
  Stream stream_;
  Staging staging_;
  // fp64: tokens, losses that are not finite, squared norm, then the loss of every micro-batch; and a copy for the
  // host.
  Tensor numbers_, seen_numbers_;
  Tensor control_;
  Event numbers_ready_;
  std::vector<Event> pace_;
};

}  // namespace sieve
