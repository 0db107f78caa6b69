// AdamW with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2), one pass over the state.
#include <cmath>

#include "core/parallel_for.h"
#include "tensor/kernels/cpu/vec.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cpu {

void run(const AdamWArgs& a) {
  require(a.step >= 1, "adamw", "step counts from 1, got ", a.step);
  // Everything that does not depend on the element is computed in fp64 once.
  const double correction1 = 1 - std::pow(a.beta1, static_cast<double>(a.step));
  const double correction2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
  const float beta1 = static_cast<float>(a.beta1), rest1 = static_cast<float>(1 - a.beta1);
  const float beta2 = static_cast<float>(a.beta2), rest2 = static_cast<float>(1 - a.beta2);
  const float rate = static_cast<float>(a.lr / correction1), keep = static_cast<float>(1 - a.lr * a.weight_decay);
  const float root2 = static_cast<float>(1 / std::sqrt(correction2)), eps = static_cast<float>(a.eps);
  const float grad_scale = static_cast<float>(a.grad_scale);
  float* __restrict p = a.p;
  float* __restrict m = a.m;
  float* __restrict v = a.v;
  const float* __restrict g = a.g;
  for_elements(a.n, 2, [=, copy = a.copy_bf16](std::int64_t begin, std::int64_t end) {
#pragma GCC ivdep
    for (std::int64_t i = begin; i < end; ++i) {
      const float gi = g[i] * grad_scale;
      const float mi = beta1 * m[i] + rest1 * gi;
      const float vi = beta2 * v[i] + rest2 * (gi * gi);
      m[i] = mi;
      v[i] = vi;
      p[i] = keep * p[i] - rate * mi / (std::sqrt(vi) * root2 + eps);
    }
    if (copy == nullptr) return;
    for (std::int64_t i = begin; i < end; ++i) copy[i] = bf16(p[i]);
  });
}

}  // namespace sieve::cpu
