// ABI of attention/rotate.h: heads of a row of features, turned by their positions or copied. Letters: B batch, H
// heads, T time, D features of a head, R = rotary_dims / 2.
#pragma once

#include <cstdint>

#include "attention/kernels/softmax.h"

namespace sieve {

// Element (b, h, t, d) lies at b * batch + h * head + t * row + d.
struct HeadStrides {
  std::int64_t batch = 0, head = 0, row = 0;
};

struct RotateArgs : KernelArgs {
  const void* x = nullptr;
  void* out = nullptr;
  HeadStrides from, to;
  std::int64_t B = 0, H = 0, T = 0, D = 0;
  std::int64_t turned = 0;                           // heads that turn: the first ones; the others are copied
  RotaryView rotary;                                 // row 0 of the tables is position 0; all copied where cos is null
  std::int64_t first_position = 0;                   // of t = 0
  const std::int32_t* document_starts_BT = nullptr;  // position = first_position + t - start; null: start = 0
  bool back = false;                                 // turns back: the transpose
  DType dtype = DType::f32;
};

namespace cpu {
void run(const RotateArgs& a);
}  // namespace cpu
namespace cuda {
void run(const RotateArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
