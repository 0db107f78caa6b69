// Backward towards the keys of spans: one block per (row, key-value head, 64 keys), over the tiles of queries whose
// spans reach them. It owns its keys, so it also adds what their selected lives left in the workspace, chunk by chunk,
// and writes dK and dV.
#include "attention/kernels/cuda/backward.cuh"

namespace sieve::cuda {
namespace {

template <class C>
struct SpanQueries {
  int query[kSide];                       // -1: none
  std::int32_t begin[kSide], end[kSide];  // keys that it sees
  C statistics[kSide], delta[kSide];

  __device__ __forceinline__ Interval read_span(const Engine& e, Visit visit, int r, std::int64_t b, std::int64_t q0) {
    query[r] = q0 + r < e.T ? static_cast<int>(q0 + r) : -1;
    const Interval span = span_of(e, visit, b, q0 + r);
    begin[r] = span.begin, end[r] = span.end;
    return span;
  }
  __device__ __forceinline__ void read(const Engine& e, int r, std::int64_t b, std::int64_t h, std::int64_t q0) {
    const std::int64_t at = (b * e.H + h) * e.T + q0 + r;
    const bool real = q0 + r < e.T;
    statistics[r] = real ? static_cast<const C*>(e.statistics)[at] : C(0);
    delta[r] = real ? static_cast<const C*>(e.delta)[at] : C(0);
  }
};

// Rows of the stage += the sums that key's chunks left, in the order of chunks; `part` 0: dK, 1: dV. One warp a row;
// its lanes look up a chunk each.
template <class C, int kPieces>
__device__ inline void add_chunks(const Engine& e, C* stage, std::int64_t b, std::int64_t kv, std::int64_t k0,
                                  int part) {
  const RowLists& lists = e.plan.chunks;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t list_row = e.list_row(b, kv), out_row = b * e.Hkv + kv;
  for (std::int64_t r = threadIdx.x / 32; r < kSide; r += kTileThreads / 32) {
    const std::int64_t j = k0 + r;
    if (j >= e.T) break;
    const Interval seen = spans::selected_queries(
        static_cast<std::int32_t>(j), {e.plan.from_BHT[list_row * e.T + j], e.plan.to_BHT[list_row * e.T + j]},
        e.plan.window);
    const std::int64_t begin = seen.begin / lists.queries,
                       end = seen.empty() ? begin : (seen.end - 1) / lists.queries + 1;
    double column = 0;
    for (std::int64_t base = begin; base < end; base += 32) {
      std::int64_t place = 0;
      if (const std::int64_t chunk = base + lane; chunk < end) {
        place = (out_row * lists.lists + chunk) * lists.capacity +
                place_in_list(e.plan, lists, e.T, list_row, chunk, static_cast<std::int32_t>(j));
      }
      const int n = static_cast<int>(end - base < 32 ? end - base : 32);
      for (int c = 0; c < n; ++c) {
        const std::int64_t at = __shfl_sync(0xffffffffu, place, c);
        const C* row = static_cast<const C*>(e.partial) + (at * 2 + part) * e.D;
        for (std::int64_t d = lane; d < e.D; d += 32) stage[r * kStageStride<kPieces> + d] += row[d];
        if (part == 0 && e.column_part != nullptr) column += e.column_part[at];
      }
    }
    if (part == 0 && e.column_heads != nullptr && lane == 0) e.column_heads[out_row * e.T + j] = column;
  }
}

// Products q . k and dO . v become weights and gradients of logits.
template <class C>
__device__ __forceinline__ void differentiate_block(const SpanQueries<C>& queries, const int (&mine)[2], C factor,
                                                    C (&s)[kHeld], C (&dp)[kHeld]) {
#pragma unroll
  for (int x = 0; x < kHeld; ++x) {
    const int column = column_of(x);
    const int key = mine[x / 2 % 2];
    const bool counts = key >= queries.begin[column] && key < queries.end[column];
    const PairGradient<C> pair = differentiate(GateMode::hard, false, C(1), s[x] * factor, dp[x],
                                               queries.statistics[column], queries.delta[column]);
    s[x] = counts ? pair.weight : C(0);
    dp[x] = counts ? pair.ds : C(0);
  }
}

// dK and dV of the block's keys, with what their chunks left.
template <class C, int kPieces>
__device__ __forceinline__ void store_gradients(const Engine& e, const C (*dk)[kHeld], const C (*dv)[kHeld],
                                                std::int64_t b, std::int64_t kv, std::int64_t k0) {
  const bool gathers = e.plan.from_BHT != nullptr;
#pragma unroll
  for (int part = 0; part < 2; ++part) {  // dK, dV
    C* stage = staged<C, kPieces>(part == 0 ? dk : dv, {C(1), C(1)});
    if (gathers) {
      add_chunks<C, kPieces>(e, stage, b, kv, k0, part);
      __syncthreads();
    }
    for (std::int64_t x = static_cast<int>(threadIdx.x); x < kSide * e.D; x += kTileThreads) {
      const std::int64_t r = x / e.D, d = x % e.D;
      if (k0 + r >= e.T) continue;
      const C* row = stage + r * kStageStride<kPieces>;
      const C value =
          part == 0 ? rotated(row, static_cast<int>(d), e.rotary, k0 + r, C(-1)) * static_cast<C>(e.scale) : row[d];
      const std::int64_t head = e.H + part * e.Hkv + kv;
      store_as(e.dqkv, (b * e.T + k0 + r) * e.features() + head * e.D + d, e.dtype, value);
    }
  }
}

template <class Math, int kPieces>
__global__ void __launch_bounds__(kTileThreads) backward_keys(const Engine e) {
  using C = typename Math::Compute;
  using Part = Operand<Math, kPieces>;
  __shared__ int keys[kSide];
  __shared__ SpanQueries<C> queries;
  const auto thread = static_cast<int>(threadIdx.x);
  const std::int64_t tile = blockIdx.x % e.tiles, kv = blockIdx.x / e.tiles % e.Hkv, b = blockIdx.x / e.tiles / e.Hkv,
                     k0 = tile * kSide;
  const auto first = static_cast<std::int32_t>(k0);
  const Interval own{first, first + kSide};
  bool sinks = false;
  if (thread < kSide) {
    keys[thread] = k0 + thread < e.T ? static_cast<int>(k0 + thread) : -1;
    sinks = keys[thread] >= 0 && keys[thread] - document_of(e, b, keys[thread]) < e.plan.sinks;
  }
  sinks = __syncthreads_or(sinks);

  auto* memory = reinterpret_cast<typename Math::Element*>(dynamic_shared());
  constexpr bool kResident = Math::kResident;
  const Part k{memory, keys, e.k, b, e.T, kv, e.D},
      v{memory + (kResident ? 2 : 0) * Part::kElements, keys, e.v, b, e.T, kv, e.D};
  Part q{memory + Part::kElements, queries.query, e.q, b, e.T, 0, e.D},
      dout{memory + (kResident ? 3 : 1) * Part::kElements, queries.query, e.dout, b, e.T, 0, e.D};
  auto* weights = memory + (kResident ? 4 : 2) * Part::kElements;
  k.load_resident();
  v.load_resident();
  const int mine[2] = {keys[warp_row()], keys[warp_row() + 8]};
  const C factor = static_cast<C>(e.scale * kLog2E);
  C s[kHeld], dp[kHeld], dk[kPieces][kHeld], dv[kPieces][kHeld];
  clear(dk), clear(dv);

  for (int turn = 0; turn < (sinks ? 2 : 1); ++turn) {
    const Visit visit = turn == 0 ? kNearSpan : kSinkSpan;
    for (std::int64_t q0 = k0; q0 < e.T; q0 += kSide) {
      if (span_of(e, visit, b, q0).begin >= own.end) break;  // begins never fall
      __syncthreads();
      bool seen = false;
      if (thread < kSide) seen = !spans::intersect(queries.read_span(e, visit, thread, b, q0), own).empty();
      if (!__syncthreads_or(seen)) continue;
      for (std::int64_t g = 0; g < e.group(); ++g) {
        q.h = dout.h = kv * e.group() + g;
        __syncthreads();
        if (thread < kSide) queries.read(e, thread, b, q.h, q0);
        q.load_resident();
        dout.load_resident();
        __syncthreads();
        product_transposed<Math, kPieces>(s, k, q);
        product_transposed<Math, kPieces>(dp, v, dout);
        differentiate_block(queries, mine, factor, s, dp);
        add_products<Math, kPieces>(dk, dv, weights, s, dp, q, dout);
      }
    }
  }

  store_gradients<C, kPieces>(e, dk, dv, b, kv, k0);
}

}  // namespace

void backward_keys(const Engine& e, Stream stream) {
  dispatch_tiles(e, [&]<class Math, int kPieces>() {
    start("attention backward, keys", backward_keys<Math, kPieces>, e.B * e.Hkv * e.tiles, kTileThreads,
          shared_bytes<Math, kPieces>(4), stream, e);
  });
}

}  // namespace sieve::cuda
