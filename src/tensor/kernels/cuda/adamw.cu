// AdamW over the flat state of all parameters in one launch (equations in kernels.h): 30 bytes an element, so what
// counts is loads in flight.
#include <cmath>

#include "tensor/kernels/cuda/pack.cuh"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

// Everything that does not depend on the element, computed in fp64 on the host.
struct Update {
  float beta1, rest1, beta2, rest2, rate, root2, eps, grad_scale;
  double decay;  // lr * weight_decay
};
struct State {
  float *p, *m, *v;
  const float* g;
  bf16* copy;
  const std::int64_t* segment_end;
  const float* segment_decay;
  std::int64_t segments, n;
  const float* control;
};

constexpr int kUpdatePacks = 2;
constexpr std::int64_t kUpdateBlock = kThreads * kUpdatePacks * 4;  // elements a block updates

// The first segment that ends behind i.
__device__ std::int64_t segment_of(const State& s, std::int64_t i) {
  std::int64_t low = 0, high = s.segments - 1;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (s.segment_end[middle] <= i) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ float keep_of(const State& s, const Update& u, std::int64_t segment) {
  return static_cast<float>(1 - u.decay * static_cast<double>(s.segment_decay[segment]));
}

__device__ void update_one(const Update& u, float scale, float keep, float& p, float& m, float& v, float g) {
  const float scaled = g * scale;
  m = u.beta1 * m + u.rest1 * scaled;
  v = u.beta2 * v + u.rest2 * (scaled * scaled);
  p = keep * p - u.rate * m / (sqrtf(v) * u.root2 + u.eps);
}

__global__ void __launch_bounds__(kThreads) adamw(State s, Update u, bool wide) {
  float scale = u.grad_scale;
  if (s.control != nullptr) {
    if (s.control[1] != 0) return;
    scale *= s.control[0];
  }
  const std::int64_t first = blockIdx.x * kUpdateBlock;
  // One search for the block: most blocks lie inside one segment.
  std::int64_t segment = s.segments > 0 ? segment_of(s, first) : 0;
  const bool one = s.segments == 0 || s.segment_end[segment] >= min(s.n, first + kUpdateBlock);
  const float block_keep = s.segments > 0 ? keep_of(s, u, segment) : static_cast<float>(1 - u.decay);
  Pack<float, 4> p[kUpdatePacks], m[kUpdatePacks], v[kUpdatePacks], g[kUpdatePacks];
#pragma unroll
  for (int k = 0; k < kUpdatePacks; ++k) {
    const std::int64_t i = first + (k * kThreads + static_cast<int>(threadIdx.x)) * 4;
    g[k] = load_part<4>(s.g + i, s.n - i, wide);
    m[k] = load_part<4>(s.m + i, s.n - i, wide);
    v[k] = load_part<4>(s.v + i, s.n - i, wide);
    p[k] = load_part<4>(s.p + i, s.n - i, wide);
  }
#pragma unroll
  for (int k = 0; k < kUpdatePacks; ++k) {
    const std::int64_t i = first + (k * kThreads + static_cast<int>(threadIdx.x)) * 4;
    Pack<bf16, 4> copy;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float keep = block_keep;
      if (!one && i + j < s.n) {
        while (segment + 1 < s.segments && s.segment_end[segment] <= i + j) ++segment;
        keep = keep_of(s, u, segment);
      }
      update_one(u, scale, keep, p[k].at[j], m[k].at[j], v[k].at[j], g[k].at[j]);
      copy.at[j] = to_element<bf16>(p[k].at[j]);
    }
    store_part<4>(s.m + i, m[k], s.n - i, wide);
    store_part<4>(s.v + i, v[k], s.n - i, wide);
    store_part<4>(s.p + i, p[k], s.n - i, wide);
    if (s.copy != nullptr) store_part<4>(s.copy + i, copy, s.n - i, wide);
  }
}

}  // namespace

void run(const AdamWArgs& a, Stream stream) {
  require(a.step >= 1, "adamw", "step counts from 1, got ", a.step);
  if (a.n == 0) return;
  const double correction1 = 1 - std::pow(a.beta1, static_cast<double>(a.step));
  const double correction2 = 1 - std::pow(a.beta2, static_cast<double>(a.step));
  const Update update{.beta1 = static_cast<float>(a.beta1),
                      .rest1 = static_cast<float>(1 - a.beta1),
                      .beta2 = static_cast<float>(a.beta2),
                      .rest2 = static_cast<float>(1 - a.beta2),
                      .rate = static_cast<float>(a.lr / correction1),
                      .root2 = static_cast<float>(1 / std::sqrt(correction2)),
                      .eps = static_cast<float>(a.eps),
                      .grad_scale = static_cast<float>(a.grad_scale),
                      .decay = a.lr * a.weight_decay};
  const State state{a.p, a.m, a.v, a.g, a.copy_bf16, a.segment_end, a.segment_decay, a.segments, a.n, a.control};
  const bool wide = aligned<4>(a.p) && aligned<4>(a.m) && aligned<4>(a.v) && aligned<4>(a.g) && aligned<4>(a.copy_bf16);
  const auto blocks = static_cast<unsigned>((a.n + kUpdateBlock - 1) / kUpdateBlock);
  adamw<<<blocks, kThreads, 0, handle_of(stream)>>>(state, update, wide);
  check_launch("adamw");
}

}  // namespace sieve::cuda
