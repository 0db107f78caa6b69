#include "attention/kernels/timestep_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

// Statistics after one more score; sums in fp64.
struct Statistics {
  double count, sum, squares;
  void add(double s) { count += 1, sum += s, squares += s * s; }
  double mean() const { return sum / count; }
  double inverse_std(double eps) const {
    const double mu = mean();
    return 1.0 / std::sqrt(std::max(0.0, squares / count - mu * mu) + eps);
  }
};

template <class T>
void forward_row(const TimestepNormArgs& a, std::int64_t row) {
  const T* s = static_cast<const T*>(a.s_BHT) + row * a.T;
  T* out = static_cast<T*>(a.out_BHT) + row * a.T;
  const double gain = static_cast<const T*>(a.gain_H)[row % a.H];
  const std::int32_t* starts = a.document_starts_BT ? a.document_starts_BT + row / a.H * a.T : nullptr;
  const Statistics fresh{a.prior_count, 0.0, a.prior_count};
  Statistics stats = a.count_BH ? Statistics{a.count_BH[row], a.sum_BH[row], a.squares_BH[row]} : fresh;
  for (std::int64_t j = 0; j < a.T; ++j) {
    if (starts && starts[j] == j) stats = fresh;
    stats.add(s[j]);
    out[j] = static_cast<T>(gain * (s[j] - stats.mean()) * stats.inverse_std(a.eps));
  }
  if (a.count_BH) a.count_BH[row] = stats.count, a.sum_BH[row] = stats.sum, a.squares_BH[row] = stats.squares;
}

// y_j depends on every s_i, i <= j, through mu_j and v_j: two suffix sums per document collect those terms in O(T).
template <class T>
double backward_row(const TimestepNormBackwardArgs& b, std::int64_t row) {
  const TimestepNormArgs& a = b.forward;
  const T* s = static_cast<const T*>(a.s_BHT) + row * a.T;
  const T* grad = static_cast<const T*>(b.grad_BHT) + row * a.T;
  T* ds = static_cast<T*>(b.ds_BHT) + row * a.T;
  const double gain = static_cast<const T*>(a.gain_H)[row % a.H];
  const std::int32_t* starts = a.document_starts_BT ? a.document_starts_BT + row / a.H * a.T : nullptr;
  const Statistics fresh{a.prior_count, 0.0, a.prior_count};
  std::vector<Statistics> after(static_cast<std::size_t>(a.T));
  Statistics stats = fresh;
  for (std::int64_t j = 0; j < a.T; ++j) {
    if (starts && starts[j] == j) stats = fresh;
    stats.add(s[j]);
    after[static_cast<std::size_t>(j)] = stats;
  }
  double dgain = 0, mean_terms = 0, square_terms = 0;
  for (std::int64_t j = a.T - 1; j >= 0; --j) {
    const Statistics& st = after[static_cast<std::size_t>(j)];
    const double r = st.inverse_std(a.eps), mu = st.mean(), centred = s[j] - mu, g = grad[j];
    dgain += g * centred * r;
    const double dv = -0.5 * g * gain * centred * r * r * r;
    mean_terms += (-g * gain * r - 2 * mu * dv) / st.count;
    square_terms += dv / st.count;
    ds[j] = static_cast<T>(g * gain * r + mean_terms + 2 * s[j] * square_terms);
    if (starts && starts[j] == j) mean_terms = square_terms = 0;
  }
  return dgain;
}

template <class F>
void by_dtype(DType dtype, F&& f) {
  if (dtype == DType::f32) return f.template operator()<float>();
  require(dtype == DType::f64, "timestep_norm", "wants f32 or f64 scores, got ", name_of(dtype));
  f.template operator()<double>();
}

}  // namespace

void run(const TimestepNormArgs& a) {
  by_dtype(a.dtype, [&]<class T>() {
    parallel_for(a.B * a.H, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) forward_row<T>(a, row);
    });
  });
}

void run(const TimestepNormBackwardArgs& b) {
  const TimestepNormArgs& a = b.forward;
  by_dtype(a.dtype, [&]<class T>() {
    std::vector<double> dgain(static_cast<std::size_t>(a.B * a.H));
    parallel_for(a.B * a.H, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) dgain[static_cast<std::size_t>(row)] = backward_row<T>(b, row);
    });
    for (std::int64_t h = 0; h < a.H; ++h) {
      double sum = 0;
      for (std::int64_t n = 0; n < a.B; ++n) sum += dgain[static_cast<std::size_t>(n * a.H + h)];
      static_cast<T*>(b.dgain_H)[h] = static_cast<T>(sum);
    }
  });
}

}  // namespace sieve::cpu
