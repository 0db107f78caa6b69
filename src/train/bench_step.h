// Times the training step of a configuration on random tokens, on every rank: the objects of a run without its data
// and outputs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace sieve {

class Communicator;

struct BenchStepOptions {
  std::string config;  // a run configuration; its micro_batch and data.seq_len give B and T
  std::vector<std::string> overrides;
  std::int64_t warmup = 1, steps = 5;  // steps not counted, counted
  std::int64_t micro_batches = 1;      // of a step and rank
  std::int64_t vocab_size = 50257;     // where model.vocab_size is auto
  bool json = false;
};

// Prints tokens/s (median step, the slowest rank's), achieved GFLOP/s, MFU, time to the first step, peak memory, and
// the time of each kernel family in one more step.
Exit bench_step(const BenchStepOptions& options, Communicator& comm);

}  // namespace sieve
