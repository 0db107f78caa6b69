// What stands in for cuBLASLt where it has no answer: any size, stride and alignment.
#pragma once

#include "tensor/kernels/kernels.h"

namespace sieve::cuda {

// C = alpha op(A) op(B) + beta C, nothing fused; C has the compute dtype.
void tiled_product(const MatmulArgs& args, const Stream& stream);

// Everything behind the product: v = acc + beta C + bias + add, then the activation. acc (compute dtype, row stride
// acc_ld) may be C, or null for K = 0. The other fields are those of `args`, whose beta counts.
void finish_product(const MatmulArgs& args, const void* acc, std::int64_t acc_ld, const Stream& stream);

}  // namespace sieve::cuda
