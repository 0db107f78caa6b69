// Backward towards gathered keys: one block per (row, key-value head, chunk of queries, 64 rows of the chunk's list).
// Its sums of dK and dV wait in the workspace for the pass over keys: a key lives in consecutive chunks, and its place
// in each list is found again by bisection.
#include "attention/kernels/cuda/backward.cuh"

namespace sieve::cuda {
namespace {

// What a key block needs of 64 queries of one head.
template <class C>
struct QueryBlock {
  int query[kSide];  // -1: none
  C statistics[kSide], delta[kSide];
  double tau[kSide];

  __device__ void read(const Engine& e, int r, std::int64_t b, std::int64_t h, std::int64_t q0, std::int64_t list_row,
                       bool gates) {
    const std::int64_t i = q0 + r, at = (b * e.H + h) * e.T + i;
    const bool real = i < e.T;
    query[r] = real ? static_cast<int>(i) : -1;
    statistics[r] = real ? static_cast<const C*>(e.statistics)[at] : C(0);
    delta[r] = real ? static_cast<const C*>(e.delta)[at] : C(0);
    tau[r] = gates ? tau_of(e, list_row, i) : 0;
  }
};

// dK against far queries belongs to a key that is not rotated: on to the frame of the key's own position.
template <class C, int kPieces>
__device__ __forceinline__ void far_to_near(const Engine& e, C (*sums)[kHeld], const int* keys) {
  turn_sums<C, kPieces>(sums, e.rotary, [&](C* row, int r, int d) {
    if (keys[r] >= 0) turn_pair(row, d, e.rotary, keys[r], C(1));
  });
}

// The sums of the rows of a list that are real, from place `base` on.
template <class C, int kPieces>
__device__ __forceinline__ void store_partial(const Engine& e, std::int64_t base, std::int64_t first,
                                              std::int64_t count, const C (*dk)[kHeld], const C (*dv)[kHeld]) {
  C* partial = static_cast<C*>(e.partial) + base * 2 * e.D;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int x = 0; x < kHeld; ++x) {
      const std::int64_t r = row_of(x), d = p * kSide + column_of(x);
      if (first + r >= count || d >= e.D) continue;
      partial[r * 2 * e.D + d] = dk[p][x];
      partial[r * 2 * e.D + e.D + d] = dv[p][x];
    }
  }
}

// Products q . k and dO . v become weights and gradients of logits.
template <class C>
__device__ __forceinline__ void differentiate_block(const Engine& e, const KeyBlock& block,
                                                    const QueryBlock<C>& queries, Visit visit, const int (&mine)[2],
                                                    bool scores, bool gates, C factor, C (&s)[kHeld], C (&dp)[kHeld],
                                                    double (&column_sums)[2]) {
#pragma unroll
  for (int x = 0; x < kHeld; ++x) {
    const int column = column_of(x), r = x / 2 % 2;
    const std::int64_t i = queries.query[column];
    const bool counts = i >= 0 && block.sees_row(e, mine[r], visit, i);
    const C m = gates && counts ? static_cast<C>(block.gate(mine[r], i, queries.tau[column])) : C(1);
    const PairGradient<C> pair =
        differentiate(e.gate.mode, gates, m, s[x] * factor, dp[x], queries.statistics[column], queries.delta[column]);
    s[x] = counts ? pair.weight : C(0);
    dp[x] = counts ? pair.ds : C(0);
    if (scores && gates && counts && block.in_band(mine[r], i)) column_sums[r] += static_cast<double>(pair.g);
  }
}

__device__ __forceinline__ void store_sums(const Engine& e, std::int64_t base, std::int64_t first, std::int64_t count,
                                           const int (&mine)[2], bool scores, double (&column_sums)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    column_sums[r] = row_sum(column_sums[r]);
    if (scores && first + mine[r] < count && static_cast<int>(threadIdx.x) % 4 == 0)
      e.column_part[base + mine[r]] = column_sums[r];
  }
}

template <class Math, int kPieces>
__global__ void __launch_bounds__(kTileThreads) backward_rows(const Engine e) {
  using C = typename Math::Compute;
  using Part = Operand<Math, kPieces>;
  __shared__ KeyBlock block;
  __shared__ QueryBlock<C> queries;
  const auto thread = static_cast<int>(threadIdx.x);
  const RowLists& lists = e.plan.chunks;
  const std::int64_t blocks = (lists.capacity + kSide - 1) / kSide;
  const std::int64_t first = blockIdx.x % blocks * kSide, chunk = blockIdx.x / blocks % lists.lists,
                     kv = blockIdx.x / blocks / lists.lists % e.Hkv, b = blockIdx.x / blocks / lists.lists / e.Hkv;
  const std::int64_t list_row = e.list_row(b, kv), list = list_row * lists.lists + chunk, count = count_of(lists, list);
  if (first >= count) return;
  if (thread < kSide) block.gather(e, thread, list_row, lists.keys + list * lists.capacity, first + thread, count);

  auto* memory = reinterpret_cast<typename Math::Element*>(dynamic_shared());
  constexpr bool kResident = Math::kResident;
  Part k{memory, block.key, e.k, b, e.T, kv, e.D}, q{memory + Part::kElements, queries.query, e.q, b, e.T, 0, e.D},
      v{memory + (kResident ? 2 : 0) * Part::kElements, block.key, e.v, b, e.T, kv, e.D},
      dout{memory + (kResident ? 3 : 1) * Part::kElements, queries.query, e.dout, b, e.T, 0, e.D};
  auto* weights = memory + (kResident ? 4 : 2) * Part::kElements;
  const bool scores = e.column_part != nullptr,
             gates = e.gate.z != nullptr && (scores || e.gate.mode != GateMode::hard);
  const int mine[2] = {warp_row(), warp_row() + 8};
  double column_sums[2] = {0, 0};
  const C factor = static_cast<C>(e.scale * kLog2E);
  C s[kHeld], dp[kHeld], dk[kPieces][kHeld], dv[kPieces][kHeld];
  clear(dk), clear(dv);

  for (int turn = e.far ? 0 : 1; turn < 2; ++turn) {
    const Visit visit = turn == 0 ? kFarRows : kNearRows;
    if (turn == 1 && e.far) far_to_near<C, kPieces>(e, dk, block.key);
    k.rows = turn == 0 ? e.far_k : e.k;
    q.rows = turn == 0 ? e.far_q : e.q;
    __syncthreads();
    k.load_resident();
    v.load_resident();
    const Interval span = spans::tile_queries(chunk, lists.queries, e.T);
    for (std::int64_t q0 = span.begin; q0 < span.end; q0 += kSide) {
      const std::int64_t q1 = q0 + kSide < e.T ? q0 + kSide : e.T;
      __syncthreads();
      if (!__syncthreads_or(thread < kSide && block.row_is_seen(e, thread, visit, q0, q1))) continue;
      for (std::int64_t g = 0; g < e.group(); ++g) {
        q.h = dout.h = kv * e.group() + g;
        __syncthreads();
        if (thread < kSide) queries.read(e, thread, b, q.h, q0, list_row, gates);
        __syncthreads();
        load_block(q, dout);
        product_transposed<Math, kPieces>(s, k, q);
        product_transposed<Math, kPieces>(dp, v, dout);
        differentiate_block(e, block, queries, visit, mine, scores, gates, factor, s, dp, column_sums);
        add_products<Math, kPieces>(dk, dv, weights, s, dp, q, dout);
      }
    }
  }

  const std::int64_t base = ((b * e.Hkv + kv) * lists.lists + chunk) * lists.capacity + first;
  store_partial<C, kPieces>(e, base, first, count, dk, dv);
  store_sums(e, base, first, count, mine, scores, column_sums);
}

}  // namespace

void backward_rows(const Engine& e, Stream stream) {
  const RowLists& lists = e.plan.chunks;
  const std::int64_t blocks = e.B * e.Hkv * lists.lists * ((lists.capacity + kSide - 1) / kSide);
  dispatch_tiles(e, [&]<class Math, int kPieces>() {
    start("attention backward, rows", backward_rows<Math, kPieces>, blocks, kTileThreads,
          shared_bytes<Math, kPieces>(4), stream, e);
  });
}

}  // namespace sieve::cuda
