// Rotary embedding of query and key heads as they lie in rows of features, for kernels that do not rotate themselves.
#pragma once

#include <cstdint>

#include "attention/kernels/softmax.h"
#include "tensor/device.h"

namespace sieve::cuda {

// dst = R(t) src for the first `heads` heads of D bf16 features of every row, or R(t)^T src if `back`; row r has
// position t = r % T. Strides count elements. src and dst may be the same rows; both 2-byte aligned. What lies behind
// the heads is not touched. fp32 arithmetic, one rounding.
struct DenseRotation {
  const void* src = nullptr;
  void* dst = nullptr;
  std::int64_t src_stride = 0, dst_stride = 0;
  std::int64_t rows = 0, T = 0, heads = 0, D = 0;
  RotaryView rotary;  // fp32 tables
  bool back = false;
};
void rotate_rows(const DenseRotation& a, Stream stream);

}  // namespace sieve::cuda
