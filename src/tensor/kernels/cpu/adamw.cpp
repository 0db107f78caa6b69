// AdamW with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2), one pass over the state.
#include <algorithm>
#include <cmath>

#include "core/parallel_for.h"
#include "tensor/kernels/cpu/vec.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cpu {
namespace {

// Everything that does not depend on the element, computed in fp64 once.
struct Update {
  float beta1, rest1, beta2, rest2, rate, root2, eps, grad_scale;
};

void update_run(const AdamWArgs& a, const Update& u, float keep, std::int64_t begin, std::int64_t end) {
  float* __restrict p = a.p;
  float* __restrict m = a.m;
  float* __restrict v = a.v;
  const float* __restrict g = a.g;
  for (std::int64_t i = begin; i < end; ++i) {
    const float gi = g[i] * u.grad_scale;
    const float mi = u.beta1 * m[i] + u.rest1 * gi;
    const float vi = u.beta2 * v[i] + u.rest2 * (gi * gi);
    m[i] = mi;
    v[i] = vi;
    p[i] = keep * p[i] - u.rate * mi / (std::sqrt(vi) * u.root2 + u.eps);
  }
  if (a.copy_bf16 == nullptr) return;
  for (std::int64_t i = begin; i < end; ++i) a.copy_bf16[i] = bf16(p[i]);
}

}  // namespace

void run(const AdamWArgs& a) {
  require(a.step >= 1, "adamw", "step counts from 1, got ", a.step);
  require(a.segments == 0 || a.segment_end[a.segments - 1] >= a.n, "adamw", "segments end before element ", a.n);
  if (a.control != nullptr && a.control[1] != 0) return;
  const double correction1 = 1 - std::pow(a.beta1, static_cast<double>(a.step));
  const double correction2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
  const Update update{.beta1 = static_cast<float>(a.beta1),
                      .rest1 = static_cast<float>(1 - a.beta1),
                      .beta2 = static_cast<float>(a.beta2),
                      .rest2 = static_cast<float>(1 - a.beta2),
                      .rate = static_cast<float>(a.lr / correction1),
                      .root2 = static_cast<float>(1 / std::sqrt(correction2)),
                      .eps = static_cast<float>(a.eps),
                      .grad_scale = static_cast<float>(a.grad_scale) * (a.control != nullptr ? a.control[0] : 1.f)};
  const auto keep_of = [&a](double decay) { return static_cast<float>(1 - a.lr * a.weight_decay * decay); };
  // Runs end at segments and at multiples of 1024, never at what a thread happens to own: see for_elements.
  for_elements(a.n, 2, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t* ends = a.segment_end;
    const std::int64_t* segment = std::upper_bound(ends, ends + a.segments, begin);
    while (begin < end) {
      std::int64_t stop = std::min(end, (begin / 1024 + 1) * 1024);
      double decay = 1;
      if (a.segments > 0) {
        while (*segment <= begin) ++segment;
        stop = std::min(stop, *segment);
        decay = static_cast<double>(a.segment_decay[segment - ends]);
      }
      update_run(a, update, keep_of(decay), begin, stop);
      begin = stop;
    }
  });
}

}  // namespace sieve::cpu
