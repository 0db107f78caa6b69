// Where the numbers of a run go: metrics.jsonl, metrics.csv and tb/ in the run folder. Only rank 0 has a MetricsWriter.
// Keys (stable, docs/training.md): step tokens time loss/train loss/val lr grad_norm tok_s tflops mfu
// mfu_full_equiv mem/peak_gib data_wait_frac skipped_steps, and per SparseK layer attn/<layer>/... when log.per_layer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace sieve {

class EventFile;

struct MetricRow {
  std::int64_t step = 0;  // finished updates
  std::vector<std::pair<std::string, double>>
      values;  // without `step`; a value that is not finite is written as null (CSV: empty)

  void add(std::string key, double value) { values.emplace_back(std::move(key), value); }
};

struct MetricSinks {
  bool jsonl = true, csv = true, tensorboard = true;
};

class MetricsWriter {
 public:
  // Opens the files of `folder` for appending after removing every row of a step above `last_step` (0: a new run; -1
  // keeps nothing), so that after a resume no step appears twice. `columns` are the CSV's, beside step; a row's other
  // keys do not reach the CSV.
  MetricsWriter(const std::string& folder, MetricSinks sinks, std::vector<std::string> columns, std::int64_t last_step);
  ~MetricsWriter();

  void write(const MetricRow& row);  // and flush

 private:
  std::string folder_;
  MetricSinks sinks_;
  std::vector<std::string> columns_;
  std::unique_ptr<EventFile> events_;
};

// The pieces, for tests: text of one row, and truncation of whole files (a torn last line goes too).
std::string jsonl_line(const MetricRow& row);
void truncate_jsonl(const std::string& path, std::int64_t last_step);
// Also adopts `columns`: values of columns that the old file had keep their place by name.
void truncate_csv(const std::string& path, const std::vector<std::string>& columns, std::int64_t last_step);

}  // namespace sieve
