// The console of a run: on a terminal one line that is redrawn, elsewhere one plain line per row. Log files never see a
// carriage return.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attention/attention.h"

namespace sieve {

struct ProgressRow {
  std::int64_t step = 0, total_steps = 0;
  double loss = 0;
  std::optional<double> val;
  double lr = 0, grad_norm = 0, tokens_per_second = 0;
  std::optional<double> mfu;  // share of the peak, 0..1
  double memory_bytes = 0;
  double data_wait = 0;  // share of the time spent waiting for batches
  double eta_seconds = 0;
};

// "step    1200/19073 loss 3.412 val 3.510 lr 5.9e-04 gnorm 0.83 412k tok/s mfu 38.1% mem 41.2 GiB data 0.3% eta 4h42m"
std::string progress_line(const ProgressRow& row);
// "selection |F|/k 1.02..1.92 saturated 0.04..0.50 ever 0.79..1.00 lifetime 428..537 score std 0.06..0.61": the lowest
// and the highest of the layers (docs/attention.md, "Reading the statistics"). At least one.
std::string selection_line(const std::vector<SelectionStats>& layers);

class ConsoleLine {
 public:
  explicit ConsoleLine(bool redraw) : redraw_(redraw) {}
  ~ConsoleLine() { clear(); }
  bool redraws() const { return redraw_; }
  void show(const std::string& line);    // redraws the line; nothing where lines are plain
  void record(const std::string& line);  // a row to keep: the log file always, the console where lines are plain
  void clear();                          // takes the redrawn line away before other output
 private:
  bool redraw_;
  bool shown_ = false;
};

bool stderr_is_terminal();

}  // namespace sieve
