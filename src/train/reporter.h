// Everything a run says while it runs: console, metrics files, status.json. Exists on every rank, speaks on rank 0
// only.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "data/loader.h"
#include "nn/model_cost.h"
#include "train/checkpoint.h"
#include "train/console.h"
#include "train/metrics.h"
#include "train/run_folder.h"

namespace sieve {

// One finished step, as reduced over all ranks.
struct StepReport {
  double loss = 0, grad_norm = 0, lr = 0;
  double seconds = 0;  // of the step on this rank
  std::int64_t tokens = 0;
  std::vector<SelectionStats> stats;  // one per layer where asked for
};

struct ReporterSetup {
  bool speaks = false;   // rank 0
  bool progress = true;  // redraw a line where stderr is a terminal
  std::int64_t total_steps = 0;
  int world_size = 1;
  double peak_tflops = 0;  // of one rank
  Device device;           // where it computes
  ModelCost cost;
  double val_bytes_per_target = 0;  // 0: no validation set
};

class Reporter {
 public:
  Reporter(const RunConfig& config, const RunFolder& folder, const ReporterSetup& setup, const TrainState& state);

  // Is a row due after this many steps? (Then selection statistics are wanted too.)
  bool row_due(std::int64_t step) const;
  // After every step: redraws the console line.
  void step(const StepReport& report, const Loader::Stats& loader, const TrainState& state);
  // At the end of every step and after a validation: writes the row of state.step where one is due or the step was
  // validated.
  void row(const TrainState& state);
  void note(const std::string& line);  // for people, between rows
  void warn(const std::string& line);
  void status(const TrainState& state);  // heartbeat: "running"
  void finished(const std::string& name, const TrainState& state, Exit code, const std::string& message = "");

 private:
  struct Rates {
    double tokens_per_second = 0, tflops = 0, mfu = 0, mfu_full = 0, data_wait = 0, eta = 0;
  };
  Rates rates(std::int64_t step) const;
  MetricRow metric_row(const TrainState& state, bool with_step) const;
  std::vector<SelectionStats> selecting_layers() const;  // of the last step, where asked for
  std::optional<double> val_bits_per_byte(const TrainState& state) const;
  std::string console_row(const TrainState& state) const;

  RunConfig config_;
  ReporterSetup setup_;
  ConsoleLine console_;
  StatusFile status_;
  std::unique_ptr<MetricsWriter> metrics_;
  StepReport last_;
  std::int64_t tokens_since_row_ = 0;  // and what else passed since the last row
  double seconds_since_row_ = 0, wait_ = 0, wait_at_row_ = 0;
  double seconds_per_step_ = 0;  // smoothed, for the ETA
  bool stepped_ = false;         // a step was reported since the last row
};

}  // namespace sieve
