// ABI of the timestep normalisation (attention/timestep_norm.h has the formulas). Letters: B batch, H score heads, T
// time.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

struct TimestepNormArgs : KernelArgs {
  const void* s_BHT = nullptr;
  const void* gain_H = nullptr;
  const std::int32_t* document_starts_BT = nullptr;  // null: one document a row
  std::int64_t B = 0, H = 0, T = 0;
  double prior_count = 0, eps = 0;
  DType dtype = DType::f32;  // f32 or f64, of s, gain and out
  void* out_BHT = nullptr;
  // Carried statistics (B * H), continued and updated when given.
  double* count_BH = nullptr;
  double* sum_BH = nullptr;
  double* squares_BH = nullptr;
};

struct TimestepNormBackwardArgs : KernelArgs {
  TimestepNormArgs forward;
  const void* grad_BHT = nullptr;
  void* ds_BHT = nullptr;
  void* dgain_H = nullptr;
};

namespace cpu {
void run(const TimestepNormArgs&);
void run(const TimestepNormBackwardArgs&);
}  // namespace cpu
namespace cuda {
void run(const TimestepNormArgs&, Stream);
void run(const TimestepNormBackwardArgs&, Stream);
}  // namespace cuda

}  // namespace sieve
