// cuDNN's fused attention as graphs: built once a shape and kept to the end of the process.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/device.h"

namespace sieve::cuda {

// What a graph depends on. rotated: q and k come from a copy of (H + Hkv) D features a row.
struct DensePlanKey {
  bool backward = false, statistics = false, deterministic = false, rotated = false;
  std::int64_t B = 0, T = 0, H = 0, Hkv = 0, D = 0, window = 0;
  float scale = 1;
  auto operator<=>(const DensePlanKey&) const = default;
};

// Device pointers of the tensors of a graph; those of the other direction stay null.
struct DensePointers {
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  void *out = nullptr, *statistics = nullptr;  // written by forward, read by backward
  const void* dout = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
};

// Both throw DenseUnsupported where cuDNN has no kernel or is not there, at once if it was asked before; a failure that
// may pass (no memory left for the kernel) is tried again, at most BuildOnce::kAttempts times. Thread-safe.
std::size_t plan_workspace_bytes(const DensePlanKey& key, Stream stream);
void run_plan(const DensePlanKey& key, const DensePointers& pointers, void* workspace, Stream stream);

}  // namespace sieve::cuda
