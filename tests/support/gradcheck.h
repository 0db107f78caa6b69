// Gradients against central differences in fp64: L = sum of seed * f(inputs), dL/dx_i ~ (L(x_i + h) - L(x_i - h)) / 2h.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autograd/variable.h"

namespace sieve::test {

using Build = std::function<Variable(const std::vector<Variable>&)>;

struct GradientError {
  double worst = 0;   // over the inputs: max |fd - g| / max(1, max |g|)
  std::string where;  // which input, which element, both numbers
};

// `inputs` are fp64 tensors of any layout (undefined ones are passed on as undefined); wants[i] says which become
// leaves. seed has the shape of f's output; undefined: all ones. Elements are moved by h in place and put back.
GradientError check_gradients(const Build& f, const std::vector<Tensor>& inputs, const std::vector<bool>& wants,
                              const Tensor& seed, double h = 1e-5);

}  // namespace sieve::test
