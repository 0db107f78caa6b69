// Pattern attention for what the tensor cores' kernels do not take (fp32, fp64, other head sizes): a warp owns a row,
// of queries or of keys, and goes through its pairs one by one. Plain and slow.
#include "attention/kernels/cuda/pattern_lists.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kTileThreads / 32;
constexpr int kEach = 4 * kSide / 32;  // features of a lane: d = lane + 32 x

// A row of a head, its features spread over the warp; zero beyond D.
template <class C>
struct Spread {
  C x[kEach];

  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < kEach; ++n) x[n] = 0;
  }
  __device__ void read(const Engine& e, const Rows& rows, std::int64_t b, std::int64_t i, std::int64_t h) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::int64_t first = (b * e.T + i) * rows.stride + rows.offset + h * e.D;
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const int d = lane + 32 * n;
      x[n] = d < e.D ? load_as<C>(rows.base, first + d, rows.dtype) : C(0);
    }
  }
  __device__ C dot(const Spread& other) const {
    C sum = 0;
#pragma unroll
    for (int n = 0; n < kEach; ++n) sum += x[n] * other.x[n];
    return warp_sum(sum);
  }
  __device__ void scale(C factor) {
#pragma unroll
    for (int n = 0; n < kEach; ++n) x[n] *= factor;
  }
  __device__ void add(const Spread& other, C factor) {
#pragma unroll
    for (int n = 0; n < kEach; ++n) x[n] += other.x[n] * factor;
  }
  // To features `first` on of a tensor of the engine's dtype; turned back to position 0 where `turns`.
  __device__ void write(const Engine& e, void* to, std::int64_t first, std::int64_t position, bool turns) const {
    __shared__ C rows[kWarps][4 * kSide];
    const int lane = static_cast<int>(threadIdx.x) % 32;
    C* row = rows[threadIdx.x / 32];
    __syncwarp();
#pragma unroll
    for (int n = 0; n < kEach; ++n) row[lane + 32 * n] = x[n];
    __syncwarp();
    for (int d = lane; d < e.D; d += 32)
      store_as(to, first + d, e.dtype, turns ? rotated(row, d, e.rotary, position, C(-1)) : row[d]);
  }
};

// see(position) for every row that row r of the unit has a pair with. The whole warp.
template <class Item, class See>
__device__ inline void each_pair(const Item& t, int r, std::int64_t T, const See& see) {
  for (int n = 0; n < t.count; ++n) {
    const std::int64_t side = t.entries[n] >> 1;
    Word bits = (t.entries[n] & 1) != 0 ? t.words[side * kSide + r] : ~Word{0};
    for (; bits != 0; bits &= bits - 1) {
      const int at = PatternLists::position(t.order, side * kSide + __ffsll(static_cast<long long>(bits)) - 1, T);
      if (at >= 0) see(at);  // beyond the row a whole tile has queries that are none
    }
  }
}

// row(r, position) for the warp's rows of the unit.
template <class Item, class Row>
__device__ inline void each_row(const Item& t, std::int64_t T, const Row& row) {
  for (int r = static_cast<int>(threadIdx.x) / 32; r < kSide; r += kWarps) {
    if (const int at = t.own(r, T); at >= 0) row(r, at);
  }
}

template <class C>
__global__ void __launch_bounds__(kTileThreads) forward(const Engine e, const PatternLists lists) {
  const PatternItem<false> t(e, lists, e.H);
  const std::int64_t kv = t.h / e.group();
  const C factor = static_cast<C>(e.scale * kLog2E);
  each_row(t, e.T, [&](int r, std::int64_t i) {
    Spread<C> q, k, v, sum;
    q.read(e, e.q, t.b, i, t.h);
    sum.clear();
    C top = C(kNothing), denominator = 0;
    each_pair(t, r, e.T, [&](std::int64_t j) {
      k.read(e, e.k, t.b, j, kv);
      v.read(e, e.v, t.b, j, kv);
      const C s = q.dot(k) * factor, moved = s > top ? s : top;
      const C shrink = power_of_2(top - moved), weight = power_of_2(s - moved);
      top = moved, denominator = denominator * shrink + weight;
      sum.scale(shrink);
      sum.add(v, weight);
    });
    if (e.statistics != nullptr && threadIdx.x % 32 == 0) {
      static_cast<C*>(e.statistics)[(t.b * e.H + t.h) * e.T + i] =
          denominator == 0 ? C(-kNothing) : top + logarithm_2(denominator);
    }
    sum.scale(denominator == 0 ? C(0) : 1 / denominator);
    sum.write(e, e.out, ((t.b * e.T + i) * e.H + t.h) * e.D, i, false);
  });
}

template <class C>
__global__ void __launch_bounds__(kTileThreads) backward_queries(const Engine e, const PatternLists lists) {
  const PatternItem<false> t(e, lists, e.H);
  const std::int64_t kv = t.h / e.group(), head_row = (t.b * e.H + t.h) * e.T;
  const C factor = static_cast<C>(e.scale * kLog2E);
  each_row(t, e.T, [&](int r, std::int64_t i) {
    Spread<C> q, dout, other, sum;
    dout.read(e, e.dout, t.b, i, t.h);
    other.read(e, {e.out, e.H * e.D, 0, e.dtype}, t.b, i, t.h);
    const C delta = dout.dot(other), statistics = static_cast<const C*>(e.statistics)[head_row + i];
    if (threadIdx.x % 32 == 0) static_cast<C*>(const_cast<void*>(e.delta))[head_row + i] = delta;
    q.read(e, e.q, t.b, i, t.h);
    sum.clear();
    each_pair(t, r, e.T, [&](std::int64_t j) {
      other.read(e, e.v, t.b, j, kv);
      const C dp = dout.dot(other);
      other.read(e, e.k, t.b, j, kv);
      sum.add(other, power_of_2(q.dot(other) * factor - statistics) * (dp - delta));
    });
    sum.scale(static_cast<C>(e.scale));
    sum.write(e, e.dqkv, (t.b * e.T + i) * e.features() + t.h * e.D, i, true);
  });
}

template <class C>
__global__ void __launch_bounds__(kTileThreads) backward_keys(const Engine e, const PatternLists lists) {
  const PatternItem<true> t(e, lists, e.Hkv);
  const C factor = static_cast<C>(e.scale * kLog2E);
  each_row(t, e.T, [&](int r, std::int64_t j) {
    Spread<C> k, v, q, dout, dk, dv;
    k.read(e, e.k, t.b, j, t.h);
    v.read(e, e.v, t.b, j, t.h);
    dk.clear();
    dv.clear();
    for (std::int64_t h = t.h * e.group(); h < (t.h + 1) * e.group(); ++h) {
      const std::int64_t head_row = (t.b * e.H + h) * e.T;
      each_pair(t, r, e.T, [&](std::int64_t i) {
        q.read(e, e.q, t.b, i, h);
        dout.read(e, e.dout, t.b, i, h);
        const C weight = power_of_2(q.dot(k) * factor - static_cast<const C*>(e.statistics)[head_row + i]);
        dv.add(dout, weight);
        dk.add(q, weight * (dout.dot(v) - static_cast<const C*>(e.delta)[head_row + i]));
      });
    }
    dk.scale(static_cast<C>(e.scale));
    const std::int64_t first = (t.b * e.T + j) * e.features() + (e.H + t.h) * e.D;
    dk.write(e, e.dqkv, first, j, true);
    dv.write(e, e.dqkv, first + e.Hkv * e.D, j, false);
  });
}

}  // namespace

void pattern_rows_forward(const Engine& e, const PatternLists& lists, Stream stream) {
  start("pattern forward", e.dtype == DType::f64 ? forward<double> : forward<float>, items_of(e, lists, e.H),
        kTileThreads, 0, stream, e, lists);
}
void pattern_rows_backward_queries(const Engine& e, const PatternLists& lists, Stream stream) {
  start("pattern backward, queries", e.dtype == DType::f64 ? backward_queries<double> : backward_queries<float>,
        items_of(e, lists, e.H), kTileThreads, 0, stream, e, lists);
}
void pattern_rows_backward_keys(const Engine& e, const PatternLists& lists, Stream stream) {
  start("pattern backward, keys", e.dtype == DType::f64 ? backward_keys<double> : backward_keys<float>,
        items_of(e, lists, e.Hkv), kTileThreads, 0, stream, e, lists);
}

}  // namespace sieve::cuda
