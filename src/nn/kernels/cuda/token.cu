// The two ends of a token: embeddings, and the choice of the next one.
#include <cmath>
#include <limits>

#include "attention/kernels/cuda/launch.cuh"
#include "nn/kernels/cuda/best.cuh"
#include "nn/kernels/token.h"
#include "tensor/kernels/cuda/dependent.cuh"
#include "tensor/kernels/cuda/pack.cuh"

namespace sieve::cuda {
namespace {

// A block a sequence; the last block turns the position into angles, in fp64 as the tables are made.
template <class T>
__global__ void __launch_bounds__(kThreads) embed(const TokenEmbedArgs a) {
  let_next_start();
  wait_for_earlier();
  const std::int64_t b = blockIdx.x, position = *a.position;
  if (b == a.B) {
    for (std::int64_t r = threadIdx.x; r < a.R; r += kThreads) {
      double s = 0, c = 0;
      sincos(static_cast<double>(position) * a.frequency_R[r], &s, &c);
      a.turn_cos_R[r] = static_cast<float>(c), a.turn_sin_R[r] = static_cast<float>(s);
    }
    return;
  }
  const std::int64_t id = a.ids_B[b];
  const bool known = id >= 0 && id < a.V;
  const T *token = static_cast<const T*>(a.tokens_VC) + (known ? id : 0) * a.C,
          *place = static_cast<const T*>(a.positions_TC) + (a.positions_TC != nullptr ? position * a.C : 0);
  for (std::int64_t i = threadIdx.x; i < a.C; i += kThreads) {
    T x = token[i];
    if (a.positions_TC != nullptr) x = to_element<T>(to_compute(x) + to_compute(place[i]));
    if (!known) x = to_element<T>(std::numeric_limits<float>::quiet_NaN());
    static_cast<T*>(a.x_BC)[b * a.C + i] = x;
  }
}

// Block (part, sequence).
__global__ void __launch_bounds__(kThreads) best_of_part(const TokenChoiceArgs a) {
  __shared__ Best warps[kThreads / 32];
  let_next_start();
  wait_for_earlier();
  const std::int64_t part = blockIdx.x, b = blockIdx.y, begin = a.vocab * part / a.kParts,
                     end = a.vocab * (part + 1) / a.kParts;
  Best best = no_best();
#pragma unroll 4
  for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads)
    best = best.joined(best_of(a.logits_BV[b * a.V + i], i));
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) best = best.joined(warps[w]);
  static_cast<Best*>(a.partial)[b * a.kParts + part] = best;
}

// One block, a warp a sequence.
__global__ void __launch_bounds__(kThreads) choose(const TokenChoiceArgs a) {
  static_assert(TokenChoiceArgs::kParts == 32);
  let_next_start();
  wait_for_earlier();
  const std::int64_t position = *a.position;
  for (std::int64_t b = threadIdx.x / 32; b < a.B; b += kThreads / 32) {
    const Best best = warp_best(static_cast<const Best*>(a.partial)[b * a.kParts + threadIdx.x % 32]);
    if (threadIdx.x % 32 != 0) continue;
    const std::int32_t id = isfinite(best.logit) ? best.id : -1;
    a.ids_B[b] = id;
    a.history_BT[b * a.kept + position % a.kept] = id;
  }
  __syncthreads();  // all have read the position
  if (threadIdx.x == 0) *a.position = position + 1;
}

}  // namespace

void run(const TokenEmbedArgs& a, Stream stream) {
  const dim3 grid(static_cast<unsigned>(a.B + (a.R > 0 ? 1 : 0)));
  dispatch_float(a.dtype, "token embedding", [&]<class T>() {
    start_dependent("token embedding", embed<T>, grid, kThreads, 0, a.follows, stream, a);
  });
}

void run(const TokenChoiceArgs& a, Stream stream) {
  require(a.B < 65536 && a.vocab >= 1 && a.vocab <= a.V, "token choice", a.B, " sequences, ", a.vocab, " of ", a.V,
          " tokens");
  const dim3 parts(static_cast<unsigned>(a.kParts), static_cast<unsigned>(a.B));
  start_dependent("token choice", best_of_part, parts, kThreads, 0, a.follows, stream, a);
  start_dependent("token choice", choose, dim3(1), kThreads, 0, true, stream, a);
}

}  // namespace sieve::cuda
