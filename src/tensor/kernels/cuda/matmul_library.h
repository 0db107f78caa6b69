// Products by cuBLASLt.
#pragma once

#include "tensor/kernels/kernels.h"

namespace sieve::cuda {

// The whole product with everything that its arguments fuse, in one call. False, and nothing is queued, where the
// library has no algorithm for it. M, N and K must not be 0.
bool library_product(const MatmulArgs& args, const Stream& stream);

}  // namespace sieve::cuda
