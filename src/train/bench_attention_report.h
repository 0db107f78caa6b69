// What `sieve bench attention` says: a table row as soon as it is measured, CSV and JSON files that are complete after
// every row, and the crossover with full attention at the end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/bench_attention.h"

namespace sieve {

// What was measured on.
struct AttentionSetting {
  std::string device, dtype;
  std::int64_t B = 0, H = 0, Hkv = 0, D = 0;
};

class AttentionReport {
 public:
  AttentionReport(const BenchAttentionOptions& options, const AttentionSetting& setting);  // prints the heading
  void add(const AttentionTiming& timing);
  void finish();

 private:
  void write_json() const;
  void write_csv() const;

  const BenchAttentionOptions& options_;
  AttentionSetting setting_;
  std::vector<AttentionTiming> timings_;
};

}  // namespace sieve
