// The training loop. Everything it needs is opened and checked by the caller (train/pretrain.cpp); it owns model,
// optimizer and outputs.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "data/validation.h"
#include "dist/signals.h"
#include "train/checkpoint_writer.h"
#include "train/gradient_step.h"
#include "train/reporter.h"
#include "train/run_data.h"
#include "train/run_folder.h"

namespace sieve {

struct TrainerSetup {
  RunConfig config;         // resolved
  std::string config_yaml;  // as kept in checkpoints
  RunData data;
  RunScale scale;
  std::unique_ptr<Decoder> model;        // with its starting weights
  TrainState state;                      // where the run starts
  const Checkpoint* restored = nullptr;  // the moments come from here
  RunFolder folder;
  bool progress = true;
};

class Trainer {
 public:
  Trainer(TrainerSetup setup, Communicator& comm);

  // Until the last step, a request to stop (saved: preempted or interrupted) or the non-finite budget is spent
  // (nonfinite).
  Exit run();

  const TrainState& state() const { return state_; }
  const Decoder& model() const { return *model_; }

 private:
  enum class Outcome { going_on, stopped, interrupted, diverged };
  Outcome update();
  Outcome skip(const StepSummary& summary);
  void validate();
  void sample();
  void save();
  void drain_writer();
  bool validation_due() const;
  bool sample_due() const;
  bool save_due() const;
  bool agreed(bool decision) const;
  bool speaks() const { return comm_.rank() == 0; }
  double lr() const;
  bool out_of_time() const;
  StepFlags requests() const;
  std::string stop_cause() const;
  void keep_time();
  void report_saved();
  Exit end(Outcome outcome);
  CheckpointContent checkpoint_content() const;

  RunConfig config_;
  std::string config_yaml_;
  Communicator& comm_;
  RunData data_;
  RunScale scale_;
  RunFolder folder_;
  std::unique_ptr<Decoder> model_;
  TrainState state_;
  GradientStep gradient_;
  AdamW optimizer_;
  Loader loader_;
  std::optional<ValidationSet> validation_;
  Reporter reporter_;
  std::unique_ptr<CheckpointWriter> writer_;  // rank 0
  std::chrono::steady_clock::time_point start_, last_save_;
  double seconds_before_;    // of earlier sessions
  std::int64_t saved_step_;  // of the newest checkpoint, -1: none
  bool save_postponed_ = false;
  bool best_ = false;  // the newest validation was the best so far and is not saved yet
};

}  // namespace sieve
