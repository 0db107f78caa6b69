// Error measures between tensors. Everything is compared in fp64, whatever the dtypes and strides.
#pragma once

#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace sieve::test {

// Elements in row-major order, as fp64.
std::vector<double> values_of(const Tensor& t);

double max_abs(const Tensor& t);  // 0 for an empty tensor
// max |a - b|; NaN where only one of the two is NaN counts as infinity. Shapes must agree.
double max_difference(const Tensor& a, const Tensor& b);
// max |a - b| / max(1, max |b|): the measure of gradient checks.
double relative_difference(const Tensor& a, const Tensor& b);
bool same_bits(const Tensor& a, const Tensor& b);  // same shape, dtype and bytes (in row-major order)
// t rounded to `dtype` and back to fp64: what a perfect implementation in that dtype could say.
Tensor rounded(const Tensor& t, DType dtype);
// Where the largest difference is: "at 17: 0.25, wanted 0.5".
std::string worst_of(const Tensor& got, const Tensor& wanted);

}  // namespace sieve::test
