#include "attention/kernels/rotate.h"

#include <vector>

#include "attention/kernels/cpu/rows.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

template <class Real>
void rotate(const RotateArgs& a) {
  const std::int64_t R = a.rotary.cos == nullptr ? 0 : a.rotary.rotary_dims / 2;
  const auto bytes = static_cast<std::int64_t>(size_of(a.dtype));
  parallel_for(a.B * a.H * a.T, 64, [&](std::int64_t first, std::int64_t last) {
    std::vector<Real> row(static_cast<std::size_t>(a.D));
    for (std::int64_t x = first; x < last; ++x) {
      const std::int64_t t = x % a.T, h = x / a.T % a.H, b = x / a.T / a.H;
      const auto place = [&](const HeadStrides& s) { return (b * s.batch + h * s.head + t * s.row) * bytes; };
      convert_row(static_cast<const char*>(a.x) + place(a.from), a.dtype, a.D, row.data());
      const std::int64_t turn = (a.first_position + t) * R;
      if (R > 0)
        rotate_row(row.data(), static_cast<const Real*>(a.rotary.cos) + turn,
                   static_cast<const Real*>(a.rotary.sin) + turn, R, Real(a.back ? -1 : 1));
      store_row(row.data(), a.D, static_cast<char*>(a.out) + place(a.to), a.dtype);
    }
  });
}

}  // namespace

void run(const RotateArgs& a) {
  if (a.dtype == DType::f64) rotate<double>(a);
  else rotate<float>(a);
}

}  // namespace sieve::cpu
