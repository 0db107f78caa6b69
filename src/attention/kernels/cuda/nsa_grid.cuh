// Where compressed keys lie, on the device: which of them a query sees is a count of those that end at or before it.
#pragma once

#include "attention/kernels/nsa.h"
#include "attention/spans.h"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {

struct GridView {
  const std::int32_t* starts = nullptr;  // (B, T); null: one document a row, and the rest is arithmetic
  const std::int32_t* ends = nullptr;    // (B, T): compressed keys of the row that end at or before a position
  const std::int32_t* firsts = nullptr;  // (B, M): the first position of each, -1: stands for nothing
  std::int64_t B = 0, T = 0, M = 0;
  int l = 1, s = 1;

  __device__ int count(int n) const { return n < l ? 0 : (n - l) / s + 1; }
  __device__ int start(std::int64_t b, int t) const { return starts != nullptr ? starts[b * T + t] : 0; }
  // Compressed keys of the row that the query at position t sees.
  __device__ Interval seen(std::int64_t b, int t) const {
    if (starts == nullptr) return {0, count(t + 1)};
    const int d = starts[b * T + t];
    return {d == 0 ? 0 : ends[b * T + d - 1], ends[b * T + t]};
  }
  __device__ int first(std::int64_t b, std::int64_t m) const {
    if (m >= M) return -1;
    return firsts != nullptr ? firsts[b * M + m] : static_cast<int>(m * s);
  }
};

// The view and what it points to, for kernels that are launched on this stream before it dies.
class DeviceGrid {
 public:
  DeviceGrid(const CompressedGrid& grid, const Stream& stream);
  GridView view;

 private:
  Scratch ends_, firsts_;
};

}  // namespace sieve::cuda
