// ABI of attention/shared_qk.h. Letters: B batch, T time, H query heads, Hv value heads, D head size.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

// out: q as it is, k = q / |q| (0 where |q| is 0), v repeated for the query heads it serves.
struct SharedQkArgs : KernelArgs {
  const void* qv_BTF = nullptr;  // F = (H + Hv) D
  void* qkv_BTF = nullptr;       // F = 3 H D
  std::int64_t B = 0, T = 0, H = 0, Hv = 0, D = 0;
  DType dtype = DType::f32;
};
// dq = grad of q + (dk - k (k . dk)) / |q|; dv summed over the heads that a value head serves, in their order.
struct SharedQkBackwardArgs : KernelArgs {
  SharedQkArgs forward;  // without its result
  const void* grad_BTF = nullptr;
  void* dqv_BTF = nullptr;
};

namespace cpu {
void run(const SharedQkArgs& a);
void run(const SharedQkBackwardArgs& a);
}  // namespace cpu
namespace cuda {
void run(const SharedQkArgs& a, Stream stream);
void run(const SharedQkBackwardArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
