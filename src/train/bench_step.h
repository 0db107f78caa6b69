// Times the training step of a configuration on random tokens: no data, no checkpoints, one process.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace sieve {

struct BenchStepOptions {
  std::string config;  // a run configuration; its micro_batch and data.seq_len give B and T
  std::vector<std::string> overrides;
  std::int64_t warmup = 1, steps = 5;  // steps not counted, counted
  std::int64_t vocab_size = 50257;     // where model.vocab_size is auto
  bool json = false;
};

// Prints tokens/s (median step), achieved GFLOP/s, peak memory and the share of each phase and kernel family.
Exit bench_step(const BenchStepOptions& options);

}  // namespace sieve
