// Backward towards the queries: one block per (row, query head, tile of 64 queries), in the order of forward. dQ stays
// in registers to the end; no other block writes it.
#include "attention/kernels/cuda/backward.cuh"

namespace sieve::cuda {
namespace {

// dQ against far keys is that of a query turned to far_distance: from there to the query's own position.
template <class C, int kPieces>
__device__ __forceinline__ void far_to_near(const Engine& e, C (*sums)[kHeld], std::int64_t q0) {
  turn_sums<C, kPieces>(sums, e.rotary, [&](C* row, int r, int d) {
    if (q0 + r >= e.T) return;
    turn_pair(row, d, e.rotary, e.rotary.far_distance, C(-1));
    turn_pair(row, d, e.rotary, q0 + r, C(1));
  });
}

__device__ __forceinline__ void store_sums(const Engine& e, const QueryTile& t, bool scores, std::int64_t head_row,
                                           double (&row_sums)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    row_sums[r] = row_sum(row_sums[r]);
    if (scores && t.i[r] < e.T && static_cast<int>(threadIdx.x) % 4 == 0) e.row_heads[head_row + t.i[r]] = row_sums[r];
  }
}

// What the thread's two queries bring to their pairs.
template <class C>
__device__ __forceinline__ void read_own(const Engine& e, const QueryTile& t, std::int64_t head_row, bool gates,
                                         C (&statistics)[2], C (&delta)[2], double (&tau)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (t.i[r] >= e.T) continue;
    statistics[r] = static_cast<const C*>(e.statistics)[head_row + t.i[r]];
    delta[r] = static_cast<const C*>(e.delta)[head_row + t.i[r]];
    if (gates) tau[r] = tau_of(e, t.list_row, t.i[r]);
  }
}

// The same in one hand, and what is asked of the pairs of gathered keys.
template <class C>
struct OwnQueries {
  const double (&tau)[2];
  const C (&statistics)[2], (&delta)[2];
  bool scores, gates;
};

// Products q . k become gradients of logits; dp = dO . v. span: keys of a span that the queries see.
template <class C>
__device__ __forceinline__ void differentiate_block(const Engine& e, const QueryTile& t, const KeyBlock& block,
                                                    Visit visit, bool rows, const Interval (&span)[2], C factor,
                                                    const OwnQueries<C>& own, C (&s)[kHeld], const C (&dp)[kHeld],
                                                    double (&row_sums)[2]) {
#pragma unroll
  for (int x = 0; x < kHeld; ++x) {
    const int column = column_of(x), r = x / 2 % 2;
    const bool counts = rows ? block.sees_row(e, column, visit, t.i[r]) : span[r].contains(block.key[column]);
    const bool gated = rows && own.gates;
    const C m = gated && counts ? static_cast<C>(block.gate(column, t.i[r], own.tau[r])) : C(1);
    const PairGradient<C> g =
        differentiate(e.gate.mode, gated, m, s[x] * factor, dp[x], own.statistics[r], own.delta[r]);
    s[x] = counts ? g.ds : C(0);
    if (own.scores && gated && counts && block.in_band(column, t.i[r])) row_sums[r] += static_cast<double>(g.g);
  }
}

// Queries for far keys are turned to far_distance; those for all others follow.
template <class Math, int kPieces>
__device__ __forceinline__ void load_queries(const Engine& e, Visit visit, Operand<Math, kPieces>& q,
                                             const Operand<Math, kPieces>& dout) {
  __syncthreads();
  q.rows = visit == kFarRows ? e.far_q : e.q;
  q.load_resident();
  dout.load_resident();
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
  fill_positions(queries, t.q0, e.T);

  const bool scores = e.row_heads != nullptr, gates = e.gate.z != nullptr && (scores || e.gate.mode != GateMode::hard);
  const std::int64_t head_row = (t.b * e.H + t.h) * e.T;
  double tau[2] = {0, 0}, row_sums[2] = {0, 0};
  C statistics[2] = {0, 0}, delta[2] = {0, 0};
  read_own(e, t, head_row, gates, statistics, delta, tau);
  const OwnQueries<C> own{tau, statistics, delta, scores, gates};
  const C factor = static_cast<C>(e.scale * kLog2E);
  C s[kHeld], dp[kHeld], sums[kPieces][kHeld];
  clear(sums);

  for (int step = e.far ? kFarRows : kNearSpan; step < kVisits; ++step) {
    const auto visit = static_cast<Visit>(step);
    const bool rows = QueryTile::is_rows(visit);
    const Interval range = t.range(e, visit);
    const Interval span[2] = {rows ? Interval{} : span_of(e, visit, t.b, t.i[0]),
                              rows ? Interval{} : span_of(e, visit, t.b, t.i[1])};
    if (visit == kNearSpan && e.far) far_to_near<C, kPieces>(e, sums, t.q0);
    if (visit == kFarRows || visit == kNearSpan) load_queries(e, visit, q, dout);
    k.rows = visit == kFarRows ? e.far_k : e.k;
    for (std::int32_t at = range.begin; at < range.end; at += kSide) {
      if (!t.open(e, visit, at, range.end, block)) continue;
      load_block(k, v);
      product_transposed<Math, kPieces>(s, q, k);
      product_transposed<Math, kPieces>(dp, dout, v);
      differentiate_block(e, t, block, visit, rows, span, factor, own, s, dp, row_sums);
      keep_weights<Math>(weights, s);
      add_product<Math, kPieces>(sums, weights, k);
    }
  }

  store_sums(e, t, scores, head_row, row_sums);
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
