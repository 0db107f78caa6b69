#include "support/compare.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"

namespace sieve::test {
namespace {

double difference(double a, double b) {
  if (std::isnan(a) != std::isnan(b)) return std::numeric_limits<double>::infinity();
  return a == b || std::isnan(a) ? 0 : std::abs(a - b);
}

}  // namespace

std::vector<double> values_of(const Tensor& t) {
  const Tensor dense = t.to(DType::f64).contiguous();
  const auto span = dense.span<double>();
  return {span.begin(), span.end()};
}

double max_abs(const Tensor& t) {
  double worst = 0;
  for (double v : values_of(t))
    worst = std::max(worst, std::isnan(v) ? std::numeric_limits<double>::infinity() : std::abs(v));
  return worst;
}

double max_difference(const Tensor& a, const Tensor& b) {
  require(a.shape() == b.shape(), "compare", "shapes differ: ", a.shape(), " and ", b.shape());
  const auto va = values_of(a), vb = values_of(b);
  double worst = 0;
  for (std::size_t i = 0; i < va.size(); ++i) worst = std::max(worst, difference(va[i], vb[i]));
  return worst;
}

double relative_difference(const Tensor& a, const Tensor& b) {
  return max_difference(a, b) / std::max(1.0, max_abs(b));
}

bool same_bits(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  const Tensor da = a.contiguous(), db = b.contiguous();
  return a.numel() == 0 || std::memcmp(da.raw(), db.raw(), da.nbytes()) == 0;
}

Tensor rounded(const Tensor& t, DType dtype) { return t.to(dtype).to(DType::f64).clone(); }

std::string worst_of(const Tensor& got, const Tensor& wanted) {
  const auto a = values_of(got), b = values_of(wanted);
  std::size_t at = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (difference(a[i], b[i]) > difference(a[at], b[at])) at = i;
  return a.empty() ? "empty" : cat("at ", at, " of ", got.shape(), ": ", a[at], ", wanted ", b[at]);
}

}  // namespace sieve::test
