// Accuracy of the vectorisable functions, in units of the last place of the fp64 result rounded to fp32.
#include <cmath>
#include <limits>

#include "tensor/kernel_case.h"
#include "tensor/kernels/cpu/vec.h"

using namespace sieve;

namespace {

double ulps(float got, double wanted) {
  const float nearest = static_cast<float>(wanted);
  const double spacing =
      std::max<double>(std::nextafter(std::abs(nearest), std::numeric_limits<float>::infinity()) - std::abs(nearest),
                       std::numeric_limits<float>::denorm_min());
  return std::abs(static_cast<double>(got) - wanted) / spacing;
}

template <class F, class G>
double worst_ulps(double low, double high, F f, G exact) {
  double worst = 0;
  const int n = 400000;
  for (int i = 0; i <= n; ++i) {
    const float x = static_cast<float>(low + (high - low) * i / n);
    worst = std::max(worst, ulps(f(x), exact(static_cast<double>(x))));
  }
  return worst;
}

}  // namespace

TEST_CASE("exp is accurate over its whole range and right at its ends") {
  const auto f = [](float x) { return cpu::exp(x); };
  const auto exact = [](double x) { return std::exp(x); };
  CHECK(worst_ulps(-87, 88.7, f, exact) <= 1.5);
  CHECK(worst_ulps(-1, 1, f, exact) <= 1.5);
  CHECK(worst_ulps(-103.9, -87, f, exact) <= 1.0);  // subnormal results: half a unit is already the rounding
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(cpu::exp(0.f) == 1.f);
  CHECK(cpu::exp(-infinity) == 0.f);
  CHECK(cpu::exp(-200.f) == 0.f);
  CHECK(cpu::exp(infinity) == infinity);
  CHECK(cpu::exp(89.f) == infinity);
  CHECK(std::isnan(cpu::exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("sigmoid is accurate on both sides") {
  const auto f = [](float x) { return cpu::sigmoid(x); };
  const auto exact = [](double x) { return 1 / (1 + std::exp(-x)); };
  CHECK(worst_ulps(-87, 30, f, exact) <= 2.5);
  CHECK(cpu::sigmoid(1000.f) == 1.f);
  CHECK(cpu::sigmoid(-1000.f) == 0.f);
}

TEST_CASE("the normal distribution keeps its relative accuracy in the tail") {
  const auto cdf = [](double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); };
  const auto pdf = [](double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0)); };
  const auto mine = [](float x) { return cpu::normal(x).cdf; };
  CHECK(worst_ulps(-1, 1, mine, cdf) <= 3);
  CHECK(worst_ulps(0.5, 6, mine, cdf) <= 1.5);
  CHECK(worst_ulps(-11, -1, mine, cdf) <= 6);
  CHECK(worst_ulps(-13, -11, mine, cdf) <= 9);
  CHECK(worst_ulps(
            -13, 13, [](float x) { return cpu::normal(x).pdf; }, pdf) <= 4);
  CHECK(cpu::normal(0.f).cdf == 0.5f);
  CHECK(cpu::normal(-40.f).cdf < 1e-37f);
  CHECK(cpu::normal(40.f).cdf == 1.f);
  CHECK(std::isnan(cpu::normal(std::numeric_limits<float>::quiet_NaN()).cdf));
}

TEST_CASE("lane sums add every term once, for every remainder") {
  for (std::int64_t n = 0; n < 100; ++n) {
    CHECK(cpu::lane_sum<double>(n, [](std::int64_t i) { return static_cast<double>(i + 1); }) ==
          static_cast<double>(n * (n + 1) / 2));
  }
}
