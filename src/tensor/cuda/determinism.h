// Whether the GPU libraries must give the same bits in every run. Process-wide: set once, before the first step.
// Kernels never read it; who fills their arguments does. No CUDA header in sight, so that any build may include it.
#pragma once

#include <atomic>

namespace sieve::cuda {

inline std::atomic<bool>& determinism() {
  static std::atomic<bool> on{false};
  return on;
}
inline void set_deterministic(bool on) { determinism().store(on, std::memory_order_relaxed); }
inline bool deterministic() { return determinism().load(std::memory_order_relaxed); }

}  // namespace sieve::cuda
