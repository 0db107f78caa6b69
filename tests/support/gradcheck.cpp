#include "support/gradcheck.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "support/compare.h"

namespace sieve::test {
namespace {

// Address of the element with row-major number i of a strided view.
double* element(const Tensor& t, std::int64_t i) {
  std::int64_t offset = 0;
  for (int axis = t.rank() - 1; axis >= 0; --axis) {
    offset += i % t.size(axis) * t.stride(axis);
    i /= t.size(axis);
  }
  return t.data<double>() + offset;
}

}  // namespace

GradientError check_gradients(const Build& f, const std::vector<Tensor>& inputs, const std::vector<bool>& wants,
                              const Tensor& seed, double h) {
  std::vector<Variable> leaves, constants;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const bool leaf = inputs[i].defined() && wants[i];
    leaves.push_back(leaf ? Variable::leaf(inputs[i]) : Variable(inputs[i]));
    constants.push_back(Variable(inputs[i]));
  }
  std::vector<double> weight;
  {
    const Variable out = f(leaves);
    require(out.dtype() == DType::f64, "gradcheck", "f gave ", name_of(out.dtype()), " for fp64 inputs");
    const Tensor full_seed = seed.defined() ? seed : full(out.shape(), 1, DType::f64);
    weight = values_of(full_seed);
    backward(out, full_seed);
  }
  GradientError error;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    if (!inputs[k].defined() || !wants[k]) continue;
    const Tensor& grad = leaves[k].grad();
    require(!grad.defined() || (grad.dtype() == DType::f64 && grad.shape() == inputs[k].shape()), "gradcheck",
            "gradient of input ", k, " is ", grad.defined() ? name_of(grad.dtype()) : "none", " ", grad.shape());
    const auto g = grad.defined() ? values_of(grad) : std::vector<double>(static_cast<std::size_t>(inputs[k].numel()));
    double largest = 1;
    for (double v : g) largest = std::max(largest, std::abs(v));
    for (std::int64_t i = 0; i < inputs[k].numel(); ++i) {
      double* x = element(inputs[k], i);
      const double x0 = *x;
      *x = x0 + h;
      const auto above = values_of(f(constants).value());
      *x = x0 - h;
      const auto below = values_of(f(constants).value());
      const double step = (x0 + h) - (x0 - h);
      *x = x0;
      double fd = 0;  // differences first: the sums themselves would cost digits
      for (std::size_t j = 0; j < weight.size(); ++j) fd += weight[j] * ((above[j] - below[j]) / step);
      const double e = std::abs(fd - g[static_cast<std::size_t>(i)]) / largest;
      if (!(e <= error.worst)) {
        error.worst = std::isnan(e) ? INFINITY : e;
        error.where = cat("input ", k, " ", inputs[k].shape(), " element ", i, ": gradient ",
                          g[static_cast<std::size_t>(i)], ", finite difference ", fd);
      }
    }
  }
  return error;
}

}  // namespace sieve::test
