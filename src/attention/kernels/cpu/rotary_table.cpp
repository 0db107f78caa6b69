#include <cmath>

#include "attention/kernels/softmax.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

template <class T>
void fill(const RotaryTableArgs& a) {
  const std::int64_t R = a.rotary_dims / 2;
  parallel_for(a.positions, 64, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t position = first; position < last; ++position) {
      for (std::int64_t r = 0; r < R; ++r) {
        // In fp64: at position 32k an fp32 angle would be off by 0.002.
        const double frequency = std::pow(a.theta, -2.0 * static_cast<double>(r) / static_cast<double>(a.rotary_dims));
        const double angle = static_cast<double>(position) * frequency;
        static_cast<T*>(a.cos)[position * R + r] = static_cast<T>(std::cos(angle));
        static_cast<T*>(a.sin)[position * R + r] = static_cast<T>(std::sin(angle));
      }
    }
  });
}

}  // namespace

void run(const RotaryTableArgs& a) {
  if (a.dtype == DType::f64) fill<double>(a);
  else fill<float>(a);
}

}  // namespace sieve::cpu
