// Kernels of a training step's end: partial sums of the reduction tree, and the numbers by which the optimizer decides,
// where the gradient lies. The rules of tensor/kernels/kernels.h hold.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

// dest[i] = sources[k-1][i] + (... + (sources[0][i] + leaf[i])), k = source_count, n elements of f32 or f64. dest may
// be one of the sources or the leaf. leaf null: zeros.
struct AddChainArgs : KernelArgs {
  static constexpr int kMaxSources = 64;
  const void* sources[kMaxSources] = {};
  int source_count = 0;
  const void* leaf = nullptr;
  void* dest = nullptr;
  std::int64_t n = 0;
  DType dtype = DType::f32;
};

// totals[0] = tokens, totals[1] = how many of the n losses are not finite: what ranks add up before StepControl.
struct StepTotalsArgs : KernelArgs {
  const double* losses = nullptr;
  std::int64_t n = 0;
  double tokens = 0;
  double* totals = nullptr;
};

// From the totals of all ranks and the squared norm of the summed gradient to AdamWArgs::control: control[0] = 1 /
// tokens, smaller where the norm of gradient / tokens exceeds `clip` (0: no clipping); control[1] = 1 if a loss or the
// norm is not finite, else 0. No tokens count as one.
struct StepControlArgs : KernelArgs {
  const double* totals = nullptr;
  const double* squared_norm = nullptr;
  double clip = 0;
  float* control = nullptr;
};

namespace cpu {
void run(const AddChainArgs&);
void run(const StepTotalsArgs&);
void run(const StepControlArgs&);
}  // namespace cpu

namespace cuda {
void run(const AddChainArgs&, Stream);
void run(const StepTotalsArgs&, Stream);
void run(const StepControlArgs&, Stream);
}  // namespace cuda

}  // namespace sieve
