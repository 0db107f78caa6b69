// Backward towards the queries: one block per (row, query head, tile of 64 queries), in the order of forward. dQ stays
// in registers to the end; no other block writes it.
#include "attention/kernels/cuda/backward.cuh"

namespace sieve::cuda {
namespace {

// dQ against far keys is that of a query turned to far_distance: from there to the query's own position.
template <class Math, int kPieces>
__device__ inline void far_to_near(const Engine& e, typename Math::Compute (*sums)[kHeld], std::int64_t q0) {
  using C = typename Math::Compute;
  C* stage = reinterpret_cast<C*>(dynamic_shared());
  __syncthreads();
  to_stage<C, kPieces>(stage, sums, {C(1), C(1)});
  __syncthreads();
  const int R = static_cast<int>(e.rotary.rotary_dims / 2);
  for (int x = static_cast<int>(threadIdx.x); x < kSide * R; x += kTileThreads) {
    const int r = x / R, d = x % R;
    if (q0 + r >= e.T) continue;
    C* row = stage + r * kStageStride<kPieces>;
    const C low = rotated(row, d, e.rotary, e.rotary.far_distance, C(-1)),
            high = rotated(row, R + d, e.rotary, e.rotary.far_distance, C(-1));
    row[d] = low, row[R + d] = high;
    const C near_low = rotated(row, d, e.rotary, q0 + r, C(1)), near_high = rotated(row, R + d, e.rotary, q0 + r, C(1));
    row[d] = near_low, row[R + d] = near_high;
  }
  __syncthreads();
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int x = 0; x < kHeld; ++x) sums[p][x] = stage[row_of(x) * kStageStride<kPieces> + p * kSide + column_of(x)];
  }
  __syncthreads();
}

template <class Math, int kPieces>
__global__ void __launch_bounds__(kTileThreads) backward_queries(const Engine e) {
  using C = typename Math::Compute;
  using Part = Operand<Math, kPieces>;
  __shared__ KeyBlock block;
  __shared__ int queries[kSide];
  const auto thread = static_cast<int>(threadIdx.x);
  const QueryTile t(e);
  auto* memory = reinterpret_cast<typename Math::Element*>(dynamic_shared());
  constexpr bool kResident = Math::kResident;
  Part q{memory, queries, e.q, t.b, e.T, t.h, e.D}, k{memory + Part::kElements, block.key, e.k, t.b, e.T, t.kv, e.D};
  const Part dout{memory + (kResident ? 2 : 0) * Part::kElements, queries, e.dout, t.b, e.T, t.h, e.D},
      v{memory + (kResident ? 3 : 1) * Part::kElements, block.key, e.v, t.b, e.T, t.kv, e.D};
  auto* weights = memory + (kResident ? 4 : 2) * Part::kElements;
  if (thread < kSide) queries[thread] = t.q0 + thread < e.T ? static_cast<int>(t.q0 + thread) : -1;

  const bool scores = e.row_heads != nullptr, gates = e.gate.z != nullptr && (scores || e.gate.mode != GateMode::hard);
  const std::int64_t head_row = (t.b * e.H + t.h) * e.T;
  double tau[2] = {0, 0}, row_sums[2] = {0, 0};
  C statistics[2] = {0, 0}, delta[2] = {0, 0};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (t.i[r] >= e.T) continue;
    statistics[r] = static_cast<const C*>(e.statistics)[head_row + t.i[r]];
    delta[r] = static_cast<const C*>(e.delta)[head_row + t.i[r]];
    if (gates) tau[r] = tau_of(e, t.list_row, t.i[r]);
  }
  const C factor = static_cast<C>(e.scale * kLog2E);
  C s[kHeld], dp[kHeld], sums[kPieces][kHeld];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int x = 0; x < kHeld; ++x) sums[p][x] = 0;
  }

  for (int step = e.far ? kFarRows : kNearSpan; step < kVisits; ++step) {
    const auto visit = static_cast<Visit>(step);
    const bool rows = QueryTile::is_rows(visit);
    const Interval range = t.range(e, visit);
    const Interval own[2] = {rows ? Interval{} : span_of(e, visit, t.b, t.i[0]),
                             rows ? Interval{} : span_of(e, visit, t.b, t.i[1])};
    if (visit == kNearSpan && e.far) far_to_near<Math, kPieces>(e, sums, t.q0);
    if (visit == kFarRows || visit == kNearSpan) {
      __syncthreads();
      q.rows = visit == kFarRows ? e.far_q : e.q;
      q.load_resident();
      dout.load_resident();
    }
    k.rows = visit == kFarRows ? e.far_k : e.k;
    for (std::int32_t at = range.begin; at < range.end; at += kSide) {
      if (!t.open(e, visit, at, range.end, block)) continue;
      if constexpr (kResident) {
        k.load_resident();
        v.load_resident();
        __syncthreads();
      }
      product_transposed<Math, kPieces>(s, q, k);
      product_transposed<Math, kPieces>(dp, dout, v);
#pragma unroll
      for (int x = 0; x < kHeld; ++x) {
        const int column = column_of(x), r = x / 2 % 2;
        const bool counts = rows ? block.sees_row(e, column, visit, t.i[r]) : own[r].contains(block.key[column]);
        const bool gated = rows && gates;
        const C m = gated && counts ? static_cast<C>(block.gate(column, t.i[r], tau[r])) : C(1);
        const PairGradient<C> g = differentiate(e.gate.mode, gated, m, s[x] * factor, dp[x], statistics[r], delta[r]);
        s[x] = counts ? g.ds : C(0);
        if (scores && gated && counts && block.in_band(column, t.i[r])) row_sums[r] += static_cast<double>(g.g);
      }
      keep_weights<Math>(weights, s);
      add_product<Math, kPieces>(sums, weights, k);
    }
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    row_sums[r] = row_sum(row_sums[r]);
    if (scores && t.i[r] < e.T && thread % 4 == 0) e.row_heads[head_row + t.i[r]] = row_sums[r];
  }
  __syncthreads();
  C* stage = reinterpret_cast<C*>(dynamic_shared());
  const C scale = static_cast<C>(e.scale);
  to_stage<C, kPieces>(stage, sums, {scale, scale});
  __syncthreads();
  for (std::int64_t x = thread; x < kSide * e.D; x += kTileThreads) {
    const std::int64_t r = x / e.D, d = x % e.D;
    if (t.q0 + r >= e.T) continue;
    const C dq = rotated(stage + r * kStageStride<kPieces>, static_cast<int>(d), e.rotary, t.q0 + r, C(-1));
    store_as(e.dqkv, (t.b * e.T + t.q0 + r) * e.features() + t.h * e.D + d, e.dtype, dq);
  }
}

}  // namespace

void backward_queries(const Engine& e, Stream stream) {
  dispatch_tiles(e, [&]<class Math, int kPieces>() {
    start("attention backward, queries", backward_queries<Math, kPieces>, e.B * e.H * e.tiles, kTileThreads,
          shared_bytes<Math, kPieces>(4), stream, e);
  });
}

}  // namespace sieve::cuda
