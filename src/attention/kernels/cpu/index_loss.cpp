#include "attention/kernels/index_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/kernels/cpu/vec.h"
#include "attention/kernels/pattern.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

// The queries of a row are cut into so many pieces, each with its own sum for the index keys. A number of its own, not
// that of the threads: no result depends on these.
constexpr std::int64_t kPieces = 8;

template <class Real>
Real dot(const Real* x, const Real* y, std::int64_t n) {
  Vec<Real> sums{};
  std::int64_t d = 0;
  for (; d + kLanes<Real> <= n; d += kLanes<Real>) sums += load(x + d) * load(y + d);
  Real sum = 0;
  for (int l = 0; l < kLanes<Real>; ++l) sum += sums[l];
  for (; d < n; ++d) sum += x[d] * y[d];
  return sum;
}

template <class Real>
void add_scaled(Real factor, const Real* x, std::int64_t n, Real* y) {
  std::int64_t d = 0;
  for (; d + kLanes<Real> <= n; d += kLanes<Real>) store(y + d, Vec<Real>(load(y + d) + factor * load(x + d)));
  for (; d < n; ++d) y[d] += factor * x[d];
}

// x -> its softmax; returns the log of the denominator.
template <class Real>
Real softmax(std::vector<Real>& x) {
  const Real top = *std::max_element(x.begin(), x.end());
  Real sum = 0;
  for (Real& value : x) sum += value = std::exp(value - top);
  for (Real& value : x) value /= sum;
  return top + std::log(sum);
}

template <class Real>
class IndexLoss {
 public:
  explicit IndexLoss(const IndexLossArgs& a) : a_(a) {}

  void run() {
    const std::int64_t key_sums = a_.dq_BHTD == nullptr ? 0 : a_.B * kPieces * a_.T * a_.Di;
    dk_.assign(static_cast<std::size_t>(key_sums), Real(0));
    const std::int64_t length = (a_.T + kPieces - 1) / kPieces;
    parallel_for(a_.B * kPieces, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t x = first; x < last; ++x) {
        const std::int64_t begin = std::min(a_.T, x % kPieces * length), end = std::min(a_.T, begin + length);
        for (std::int64_t i = begin; i < end; ++i) query(x / kPieces, i, x);
      }
    });
    if (key_sums > 0) add_pieces();
  }

 private:
  static const Real* real(const void* x) { return static_cast<const Real*>(x); }
  const Real* row(const void* x, std::int64_t b, std::int64_t heads, std::int64_t h, std::int64_t t,
                  std::int64_t n) const {
    return real(x) + ((b * heads + h) * a_.T + t) * n;
  }

  // The mean over the heads of their probabilities of the chosen keys.
  std::vector<Real> target(std::int64_t b, std::int64_t i, const std::int32_t* keys, std::size_t n) const {
    std::vector<Real> p(n), logits(n);
    for (std::int64_t h = 0; h < a_.H; ++h) {
      const Real* q = row(a_.q_BHTD, b, a_.H, h, i, a_.D);
      for (std::size_t j = 0; j < n; ++j)
        logits[j] =
            static_cast<Real>(a_.scale) * dot(q, row(a_.k_BHTD, b, a_.Hkv, h / (a_.H / a_.Hkv), keys[j], a_.D), a_.D);
      softmax(logits);
      for (std::size_t j = 0; j < n; ++j) p[j] += logits[j] / static_cast<Real>(a_.H);
    }
    return p;
  }

  void query(std::int64_t b, std::int64_t i, std::int64_t piece) {
    const std::int32_t* keys = a_.choice_BTM + (b * a_.T + i) * a_.M;
    const auto n = static_cast<std::size_t>(std::find(keys, keys + a_.M, kNoChoice) - keys);
    double& loss = a_.loss_BT[b * a_.T + i] = 0;
    std::vector<Real> products(n * static_cast<std::size_t>(a_.Hi)), r(n);
    for (std::int64_t h = 0; n > 0 && h < a_.Hi; ++h) {
      const Real w = real(a_.weights_BHT)[(b * a_.Hi + h) * a_.T + i];
      for (std::size_t j = 0; j < n; ++j) {
        const Real x =
            dot(row(a_.index_q_BHTD, b, a_.Hi, h, i, a_.Di), row(a_.index_k_BTD, b, 1, 0, keys[j], a_.Di), a_.Di);
        products[static_cast<std::size_t>(h) * n + j] = x;
        r[j] += w * (x < 0 ? Real(0) : x);
      }
    }
    if (n > 0) {
      const std::vector<Real> p = target(b, i, keys, n), index = r;
      const Real log_sum = softmax(r);
      for (std::size_t j = 0; j < n; ++j) {
        if (!(p[j] <= 0))
          loss += static_cast<double>(p[j] * (std::log(p[j]) - (index[j] - log_sum)));  // NaN is passed on
        r[j] -= p[j];
      }
    }
    if (a_.dq_BHTD != nullptr) gradient(b, i, piece, keys, r, products);
  }

  // dI = r - p of the query's keys -> dq and dweights of the query, and the piece's sums for the keys.
  void gradient(std::int64_t b, std::int64_t i, std::int64_t piece, const std::int32_t* keys,
                const std::vector<Real>& grad, const std::vector<Real>& products) {
    for (std::int64_t h = 0; h < a_.Hi; ++h) {
      const std::int64_t at = (b * a_.Hi + h) * a_.T + i;
      const Real w = real(a_.weights_BHT)[at];
      const Real* q = real(a_.index_q_BHTD) + at * a_.Di;
      Real* dq = static_cast<Real*>(a_.dq_BHTD) + at * a_.Di;
      std::fill(dq, dq + a_.Di, Real(0));
      Real dw = 0;
      for (std::size_t j = 0; j < grad.size(); ++j) {
        const Real x = products[static_cast<std::size_t>(h) * grad.size() + j];
        if (!(x > 0)) continue;
        dw += grad[j] * x;
        add_scaled(grad[j] * w, row(a_.index_k_BTD, b, 1, 0, keys[j], a_.Di), a_.Di, dq);
        add_scaled(grad[j] * w, q, a_.Di, dk_.data() + (piece * a_.T + keys[j]) * a_.Di);
      }
      static_cast<Real*>(a_.dweights_BHT)[at] = dw;
    }
  }

  void add_pieces() const {
    const std::int64_t n = a_.T * a_.Di;
    parallel_for(a_.B * n, 4096, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t x = first; x < last; ++x) {
        Real sum = 0;
        for (std::int64_t p = 0; p < kPieces; ++p)
          sum += dk_[static_cast<std::size_t>((x / n * kPieces + p) * n + x % n)];
        static_cast<Real*>(a_.dk_BTD)[x] = sum;
      }
    });
  }

  const IndexLossArgs& a_;
  std::vector<Real> dk_;  // (B, kPieces, T, Di)
};

}  // namespace

void run(const IndexLossArgs& a) {
  if (a.dtype == DType::f64) IndexLoss<double>(a).run();
  else IndexLoss<float>(a).run();
}

}  // namespace sieve::cpu
