// What a run will cost, from its configuration alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/json.h"
#include "nn/model_cost.h"
#include "train/run_config.h"

namespace sieve {

// Bytes of one rank.
struct MemoryPlan {
  double weights = 0;      // fp32 masters and bf16 copies
  double optimizer = 0;    // two fp32 moments
  double gradients = 0;    // partial sums of the reduction tree
  double activations = 0;  // kept for backward, one micro-batch
  double recomputed = 0;   // not kept because train.recompute makes it again
  double loss = 0;         // one chunk of logits
  double snapshot = 0;     // rank 0's copy for the checkpoint writer, in host memory
  bool on_gpu = false;     // then the snapshot is not where the rest is
  double total() const { return weights + optimizer + gradients + activations + loss + (on_gpu ? 0 : snapshot); }
};

struct RunPlan {
  ModelCost cost;
  std::vector<KindCost> kinds;  // of the model's layers
  MemoryPlan memory;
  RunScale scale;
  std::int64_t tokens = 0;  // of the whole run
  int world_size = 1;
  double peak_tflops = 0;  // of one rank
  double seconds = 0;      // at kAssumedUtilisation of the peak
};
inline constexpr double kAssumedUtilisation = 0.4;

// config: resolved.
RunPlan make_plan(const RunConfig& config, const RunScale& scale, int world_size, double peak_tflops);
std::string plan_line(const RunPlan& plan);  // one line, as printed when a run starts
std::string plan_text(const RunPlan& plan);  // a small table
Json plan_json(const RunPlan& plan);
// What to read when memory does not suffice: what the plan holds, and what would shrink it, best first, each with what
// would be left.
std::vector<std::string> memory_help(const RunConfig& config, const RunPlan& plan);
// Bytes where this configuration computes: of the GPU if there is one, else of the machine.
double physical_memory(const RunConfig& config);

}  // namespace sieve
