#include "attention/kernels/shared_qk.h"

#include <cmath>
#include <vector>

#include "attention/kernels/cpu/rows.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

// Head `head` of row `row` of an array of `heads` heads a row, by its bytes.
const char* head_of(const void* x, const SharedQkArgs& a, std::int64_t row, std::int64_t heads, std::int64_t head) {
  return static_cast<const char*>(x) + (row * heads + head) * a.D * static_cast<std::int64_t>(size_of(a.dtype));
}
char* head_of(void* x, const SharedQkArgs& a, std::int64_t row, std::int64_t heads, std::int64_t head) {
  return static_cast<char*>(x) + (row * heads + head) * a.D * static_cast<std::int64_t>(size_of(a.dtype));
}

template <class Real>
Real dot(const Real* x, const Real* y, std::int64_t n) {
  Real sum = 0;
  for (std::int64_t d = 0; d < n; ++d) sum += x[d] * y[d];
  return sum;
}

template <class Real>
void forward(const SharedQkArgs& a) {
  parallel_for(a.B * a.T, 16, [&](std::int64_t first, std::int64_t last) {
    std::vector<Real> x(static_cast<std::size_t>(a.D));
    for (std::int64_t row = first; row < last; ++row) {
      for (std::int64_t h = 0; h < a.H; ++h) {
        convert_row(head_of(a.qv_BTF, a, row, a.H + a.Hv, h), a.dtype, a.D, x.data());
        store_row(x.data(), a.D, head_of(a.qkv_BTF, a, row, 3 * a.H, h), a.dtype);
        const Real length = std::sqrt(dot(x.data(), x.data(), a.D));
        for (Real& value : x) value = length == 0 ? Real(0) : value / length;
        store_row(x.data(), a.D, head_of(a.qkv_BTF, a, row, 3 * a.H, a.H + h), a.dtype);
        convert_row(head_of(a.qv_BTF, a, row, a.H + a.Hv, a.H + h / (a.H / a.Hv)), a.dtype, a.D, x.data());
        store_row(x.data(), a.D, head_of(a.qkv_BTF, a, row, 3 * a.H, 2 * a.H + h), a.dtype);
      }
    }
  });
}

template <class Real>
void backward(const SharedQkBackwardArgs& b) {
  const SharedQkArgs& a = b.forward;
  const auto D = static_cast<std::size_t>(a.D);
  parallel_for(a.B * a.T, 16, [&](std::int64_t first, std::int64_t last) {
    std::vector<Real> q(D), dk(D), sum(D);
    for (std::int64_t row = first; row < last; ++row) {
      for (std::int64_t h = 0; h < a.H; ++h) {
        convert_row(head_of(a.qv_BTF, a, row, a.H + a.Hv, h), a.dtype, a.D, q.data());
        convert_row(head_of(b.grad_BTF, a, row, 3 * a.H, h), a.dtype, a.D, sum.data());
        convert_row(head_of(b.grad_BTF, a, row, 3 * a.H, a.H + h), a.dtype, a.D, dk.data());
        const Real squares = dot(q.data(), q.data(), a.D), length = std::sqrt(squares);
        const Real along = squares == 0 ? Real(0) : dot(q.data(), dk.data(), a.D) / squares;
        for (std::size_t d = 0; d < D && length != 0; ++d) sum[d] += (dk[d] - q[d] * along) / length;
        store_row(sum.data(), a.D, head_of(b.dqv_BTF, a, row, a.H + a.Hv, h), a.dtype);
      }
      for (std::int64_t v = 0; v < a.Hv; ++v) {
        const std::int64_t group = a.H / a.Hv;
        sum.assign(D, Real(0));
        for (std::int64_t g = 0; g < group; ++g) {
          convert_row(head_of(b.grad_BTF, a, row, 3 * a.H, 2 * a.H + v * group + g), a.dtype, a.D, dk.data());
          for (std::size_t d = 0; d < D; ++d) sum[d] += dk[d];
        }
        store_row(sum.data(), a.D, head_of(b.dqv_BTF, a, row, a.H + a.Hv, a.H + v), a.dtype);
      }
    }
  });
}

}  // namespace

void run(const SharedQkArgs& a) {
  if (a.dtype == DType::f64) forward<double>(a);
  else forward<float>(a);
}
void run(const SharedQkBackwardArgs& a) {
  if (a.forward.dtype == DType::f64) backward<double>(a);
  else backward<float>(a);
}

}  // namespace sieve::cpu
