// Forward of the softmax engine: one block per (row, query head, tile of 64 queries). The online softmax is that of
// Milakov & Gimelshein 2018 (arXiv 1805.02867) in the tiling of Dao et al. 2022 (arXiv 2205.14135), in units of log 2.
#include "attention/kernels/cuda/engine.cuh"
#include "attention/kernels/cuda/hopper/hopper.h"

namespace sieve::cuda {
namespace {

// Logits become the weights of the values; maximum and denominator of the thread's two rows move on, and what was
// summed shrinks.
template <class C, int kPieces, class Sees, class Gate>
__device__ inline void advance(C* s, C (&top)[2], C (&denominator)[2], C (*sums)[kHeld], C factor, GateMode mode,
                               bool gated, const Sees& sees, const Gate& gate) {
  const bool kv = gated && mode == GateMode::kv, prob = gated && mode == GateMode::prob,
             weighs = gated && (mode == GateMode::kv || mode == GateMode::value);
  C high[2] = {top[0], top[1]};
  unsigned seen = 0;
#pragma unroll
  for (int x = 0; x < kHeld; ++x) {
    if (!sees(x)) continue;
    seen |= 1u << x;
    s[x] *= factor;
    if (kv) s[x] *= gate(x);
    C& h = high[x / 2 % 2];
    h = s[x] > h || s[x] != s[x] ? s[x] : h;  // NaN wins: it must reach the output
  }
  C shrink[2], sum[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    high[r] = row_max(high[r]);
    shrink[r] = power_of_2(top[r] - high[r]);
    top[r] = high[r];
  }
#pragma unroll
  for (int x = 0; x < kHeld; ++x) {
    const int r = x / 2 % 2;
    C p = 0;
    if ((seen >> x & 1u) != 0) {
      const C m = gated ? gate(x) : C(1);
      p = power_of_2(s[x] - top[r]) * (prob ? m : C(1));
      sum[r] += p;
      p *= weighs ? m : C(1);
    }
    s[x] = p;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) denominator[r] = denominator[r] * shrink[r] + row_sum(sum[r]);
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int x = 0; x < kHeld; ++x) sums[p][x] *= shrink[x / 2 % 2];
  }
}

template <class C, int kPieces>
__device__ __forceinline__ void store_sums(const Engine& e, const QueryTile& t, const C (*sums)[kHeld],
                                           const C (&inverse)[2]) {
  const C* stage = staged<C, kPieces>(sums, inverse);
  for (std::int64_t x = static_cast<int>(threadIdx.x); x < kSide * e.D; x += kTileThreads) {
    const std::int64_t r = x / e.D, d = x % e.D;
    if (t.q0 + r < e.T) {
      store_as(e.out, ((t.b * e.T + t.q0 + r) * e.H + t.h) * e.D + d, e.dtype, stage[r * kStageStride<kPieces> + d]);
    }
  }
}

// What the sums of the thread's queries are to be multiplied by, and their statistics.
template <class C>
__device__ __forceinline__ void finish(C (&inverse)[2], const C (&top)[2], const C (&denominator)[2], const Engine& e,
                                       const QueryTile& t, int thread) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    inverse[r] = denominator[r] == 0 ? C(0) : 1 / denominator[r];
    if (e.statistics == nullptr || t.i[r] >= e.T || thread % 4 != 0) continue;
    static_cast<C*>(e.statistics)[(t.b * e.H + t.h) * e.T + t.i[r]] =
        denominator[r] == 0 ? C(-kNothing) : top[r] + logarithm_2(denominator[r]);
  }
}

template <class Math, int kPieces>
__global__ void __launch_bounds__(kTileThreads) forward(const Engine e) {
  using C = typename Math::Compute;
  using Part = Operand<Math, kPieces>;
  __shared__ KeyBlock block;
  __shared__ int queries[kSide];
  const auto thread = static_cast<int>(threadIdx.x);
  const QueryTile t(e);
  auto* memory = reinterpret_cast<typename Math::Element*>(dynamic_shared());
  Part q{memory, queries, e.q, t.b, e.T, t.h, e.D}, k{memory + Part::kElements, block.key, e.k, t.b, e.T, t.kv, e.D},
      v{memory + (Math::kResident ? 2 : 1) * Part::kElements, block.key, e.v, t.b, e.T, t.kv, e.D};
  auto* weights = memory + (Math::kResident ? 3 : 2) * Part::kElements;
  fill_positions(queries, t.q0, e.T);

  const bool gates = e.gate.z != nullptr && e.gate.mode != GateMode::hard;
  double tau[2] = {0, 0};
  if (gates) tau[0] = tau_of(e, t.list_row, t.i[0]), tau[1] = tau_of(e, t.list_row, t.i[1]);
  const C factor = static_cast<C>(e.scale * kLog2E);
  C top[2] = {C(kNothing), C(kNothing)}, denominator[2] = {0, 0}, s[kHeld], sums[kPieces][kHeld];
  clear(sums);

  for (int step = e.far ? kFarRows : kNearSpan; step < kVisits; ++step) {
    const auto visit = static_cast<Visit>(step);
    const bool rows = QueryTile::is_rows(visit);
    const Interval range = t.range(e, visit);
    const Interval own[2] = {rows ? Interval{} : span_of(e, visit, t.b, t.i[0]),
                             rows ? Interval{} : span_of(e, visit, t.b, t.i[1])};
    if (visit == kFarRows || visit == kNearSpan) {
      __syncthreads();
      q.rows = visit == kFarRows ? e.far_q : e.q;
      q.load_resident();
    }
    k.rows = visit == kFarRows ? e.far_k : e.k;
    for (std::int32_t at = range.begin; at < range.end; at += kSide) {
      if (!t.open(e, visit, at, range.end, block)) continue;
      load_block(k, v);
      product_transposed<Math, kPieces>(s, q, k);
      const auto sees = [&](int x) {
        const int column = column_of(x), r = x / 2 % 2;
        return rows ? block.sees_row(e, column, visit, t.i[r]) : own[r].contains(block.key[column]);
      };
      const auto gate = [&](int x) { return static_cast<C>(block.gate(column_of(x), t.i[x / 2 % 2], tau[x / 2 % 2])); };
      advance<C, kPieces>(s, top, denominator, sums, factor, e.gate.mode, rows && gates, sees, gate);
      keep_weights<Math>(weights, s);
      add_product<Math, kPieces>(sums, weights, v);
    }
  }

  C inverse[2];
  finish(inverse, top, denominator, e, t, thread);
  store_sums<C, kPieces>(e, t, sums, inverse);
}

}  // namespace

std::size_t workspace_bytes(const SoftmaxForwardArgs& a, Stream) { return workspace_of(a, false, false).bytes; }

void run(const SoftmaxForwardArgs& a, Stream stream) {
  if (a.B * a.T == 0) return;
  const Engine e = prepare(a, workspace_of(a, false, false), stream);
  if (a.device_plan.warpgroups) return hopper::forward(e, stream);
  dispatch_tiles(e, [&]<class Math, int kPieces>() {
    start("attention forward", forward<Math, kPieces>, e.B * e.H * e.tiles, kTileThreads,
          shared_bytes<Math, kPieces>(3), stream, e);
  });
}

}  // namespace sieve::cuda
