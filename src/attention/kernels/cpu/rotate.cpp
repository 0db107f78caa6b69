#include "attention/kernels/rotate.h"

#include <cstring>
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
      const std::int64_t h = x % a.H, t = x / a.H % a.T, b = x / a.H / a.T;
      const auto place = [&](const HeadStrides& s) { return (b * s.batch + h * s.head + t * s.row) * bytes; };
      const char* in = static_cast<const char*>(a.x) + place(a.from);
      char* out = static_cast<char*>(a.out) + place(a.to);
      if (R == 0 || h >= a.turned) {
        std::memcpy(out, in, static_cast<std::size_t>(a.D * bytes));
        continue;
      }
      const std::int64_t start = a.document_starts_BT == nullptr ? 0 : a.document_starts_BT[b * a.T + t];
      const std::int64_t turn = (a.first_position + t - start) * R;
      convert_row(in, a.dtype, a.D, row.data());
      rotate_row(row.data(), static_cast<const Real*>(a.rotary.cos) + turn,
                 static_cast<const Real*>(a.rotary.sin) + turn, R, Real(a.back ? -1 : 1));
      store_row(row.data(), a.D, out, a.dtype);
    }
  });
}

}  // namespace

void run(const RotateArgs& a) {
  if (a.dtype == DType::f64) rotate<double>(a);
  else rotate<float>(a);
}

}  // namespace sieve::cpu
