// The rules by which gradients are brought to a shape and a dtype and added up. Only the engine uses them; ops never
// do.
#pragma once

#include "tensor/tensor.h"

namespace sieve {

// Sums `grad` over the axes along which `shape` was broadcast to grad.shape(). bf16 sums come back in fp32.
Tensor unbroadcast(const Tensor& grad, const Shape& shape);

// total + grad in `dtype` (same shape); `total` may be undefined, then it is `grad` as it is. Writes in place where it
// holds the only reference to one of the two.
Tensor sum_of(Tensor total, Tensor grad, DType dtype);

// A leaf's total += grad, always in place once the total exists: others (reduction buckets) may hold views of it. The
// first contribution becomes the total without a copy where nobody else holds it.
void accumulate(Tensor& total, Tensor grad, DType dtype);

}  // namespace sieve
