// Products of one piece of a matrix product, each on the calling thread alone. Same arguments as the whole: a piece of
// C is a product of its own, with pointers moved and M and N cut; K is never cut, so nothing is summed across pieces.
#pragma once

#include "tensor/kernels/kernels.h"

namespace sieve::cpu {

// oneDNN: f32 and bf16. Without oneDNN in the build these are not compiled.
void onednn_product(const MatmulArgs& piece);
void onednn_prepare(
    const MatmulArgs& piece);  // plans the product, so that threads find the plan and do not all make it
bool onednn_has_bf16();        // whether this CPU multiplies bf16 faster than fp32

// OpenBLAS: f32 and f64.
void blas_product(const MatmulArgs& piece);

}  // namespace sieve::cpu
