// Attention over compressed keys for what the tensor cores' kernels do not take (fp32, fp64, other head sizes): a warp
// owns a query or a compressed key and goes through its pairs one by one. Plain and slow.
#include "attention/kernels/cuda/nsa_choice.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kTileThreads / 32;
constexpr int kEach = 4 * kSide / 32;  // features of a lane: d = lane + 32 x

// D features from an element on, spread over the warp; zero beyond D.
template <class C>
struct Features {
  C x[kEach];

  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < kEach; ++n) x[n] = 0;
  }
  __device__ void read(const CompressedJob& e, const void* from, std::int64_t first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int n = 0; n < kEach; ++n)
      x[n] = lane + 32 * n < e.D ? load_as<C>(from, first + lane + 32 * n, e.dtype) : C(0);
  }
  __device__ void write(const CompressedJob& e, void* to, std::int64_t first, DType dtype, C factor) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int n = 0; n < kEach; ++n)
      if (lane + 32 * n < e.D) store_as(to, first + lane + 32 * n, dtype, x[n] * factor);
  }
  __device__ C dot(const Features& other) const {
    C sum = 0;
#pragma unroll
    for (int n = 0; n < kEach; ++n) sum += x[n] * other.x[n];
    return warp_sum(sum);
  }
  __device__ void scale(C factor) {
#pragma unroll
    for (int n = 0; n < kEach; ++n) x[n] *= factor;
  }
  __device__ void add(const Features& other, C factor) {
#pragma unroll
    for (int n = 0; n < kEach; ++n) x[n] += other.x[n] * factor;
  }
};

// Row x of (B, heads, rows), that of the calling warp; false beyond the last.
struct WarpRow {
  std::int64_t b, h, x;
  bool real;

  __device__ WarpRow(std::int64_t B, std::int64_t heads, std::int64_t rows) {
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    x = at % rows, h = at / rows % heads, b = at / rows / heads;
    real = b < B;
  }
};

template <class C>
__global__ void __launch_bounds__(kTileThreads) forward(const CompressedJob e) {
  const WarpRow w(e.B, e.H, e.N);
  if (!w.real) return;  // whole warps leave
  const std::int64_t kv = w.h / e.group(), row = e.query(w.b, w.x, w.h);
  const C factor = static_cast<C>(e.scale * kLog2E);
  const Interval seen = e.seen(w.b, w.x);
  Features<C> q, k, v, sum;
  q.read(e, e.q, row);
  sum.clear();
  C top = C(kNothing), denominator = 0;
  for (int m = seen.begin; m < seen.end; ++m) {
    k.read(e, e.k, e.key(w.b, kv, m));
    v.read(e, e.v, e.key(w.b, kv, m));
    const C s = q.dot(k) * factor, moved = s > top ? s : top;
    const C shrink = power_of_2(top - moved), weight = power_of_2(s - moved);
    top = moved, denominator = denominator * shrink + weight;
    sum.scale(shrink);
    sum.add(v, weight);
  }
  if (threadIdx.x % 32 == 0)
    static_cast<C*>(e.statistics)[e.head_row(w.b, w.h) + w.x] =
        denominator == 0 ? C(-kNothing) : top + logarithm_2(denominator);
  sum.write(e, e.out, row, e.dtype, denominator == 0 ? C(0) : 1 / denominator);
}

// Shared memory of a warp: the probabilities of 64 keys, and the importance of every block.
template <class C>
__global__ void __launch_bounds__(kTileThreads) choose(const CompressedJob e) {
  const WarpRow w(e.B, e.Hkv, e.N);
  if (!w.real) return;  // whole warps leave
  const int lane = static_cast<int>(threadIdx.x) % 32;
  C* p = reinterpret_cast<C*>(dynamic_shared()) + static_cast<std::int64_t>(threadIdx.x / 32) * (kSide + e.width);
  C* importance = p + kSide;
  const C factor = static_cast<C>(e.scale * kLog2E);
  const Interval seen = e.blocks > 3 ? e.seen(w.b, w.x) : Interval{0, 0};
  for (int x = lane; x < e.width; x += 32) importance[x] = 0;
  for (int first = seen.begin; first < seen.end; first += kSide) {
    const int count = spans::min(seen.end - first, kSide);
    __syncwarp();
    for (std::int64_t h = w.h * e.group(); h < (w.h + 1) * e.group(); ++h) {
      Features<C> q, k;
      q.read(e, e.q, e.query(w.b, w.x, h));
      const C statistics = static_cast<const C*>(e.statistics)[e.head_row(w.b, h) + w.x];
      for (int x = 0; x < count; ++x) {
        k.read(e, e.k, e.key(w.b, w.h, first + x));
        const C weight = power_of_2(q.dot(k) * factor - statistics);
        if (lane == 0) p[x] = h == w.h * e.group() ? weight : p[x] + weight;
      }
    }
    __syncwarp();
    add_importance(e, p, 0, count, first - seen.begin, importance);
  }
  __syncwarp();
  write_choice(e, e.position(w.b, w.x), importance, e.choice + ((w.b * e.Hkv + w.h) * e.N + w.x) * e.blocks);
}

template <class C>
__global__ void __launch_bounds__(kTileThreads) backward_queries(const CompressedJob e) {
  const WarpRow w(e.B, e.H, e.N);
  if (!w.real) return;  // whole warps leave
  const std::int64_t kv = w.h / e.group(), row = e.query(w.b, w.x, w.h), at = e.head_row(w.b, w.h) + w.x;
  const C factor = static_cast<C>(e.scale * kLog2E), statistics = static_cast<const C*>(e.statistics)[at];
  const Interval seen = e.seen(w.b, w.x);
  Features<C> q, dout, other, sum;
  dout.read(e, e.dout, row);
  other.read(e, e.out, row);
  const C delta = dout.dot(other);
  if (threadIdx.x % 32 == 0) static_cast<C*>(e.delta)[at] = delta;
  q.read(e, e.q, row);
  sum.clear();
  for (int m = seen.begin; m < seen.end; ++m) {
    other.read(e, e.v, e.key(w.b, kv, m));
    const C dp = dout.dot(other);
    other.read(e, e.k, e.key(w.b, kv, m));
    sum.add(other, power_of_2(q.dot(other) * factor - statistics) * (dp - delta));
  }
  sum.write(e, e.dq, row, e.dtype, static_cast<C>(e.scale));
}

template <class C>
__global__ void __launch_bounds__(kTileThreads) backward_keys(const CompressedJob e) {
  const WarpRow w(e.B, e.Hkv, e.grid.M);
  if (!w.real) return;  // whole warps leave
  const C factor = static_cast<C>(e.scale * kLog2E);
  const std::int64_t row = e.key(w.b, w.h, w.x), before = e.grid.T - e.N;
  const int first = e.grid.first(w.b, w.x);
  Features<C> k, v, q, dout, dk, dv;
  k.read(e, e.k, row);
  v.read(e, e.v, row);
  dk.clear();
  dv.clear();
  // From the query at its last position on, to the end of the document.
  const std::int64_t since = first + std::int64_t{e.grid.l} - 1 - before;
  for (std::int64_t h = w.h * e.group(); first >= 0 && h < (w.h + 1) * e.group(); ++h) {
    for (std::int64_t n = since < 0 ? 0 : since; n < e.N && e.seen(w.b, n).contains(w.x); ++n) {
      const std::int64_t at = e.head_row(w.b, h) + n;
      q.read(e, e.q, e.query(w.b, n, h));
      dout.read(e, e.dout, e.query(w.b, n, h));
      const C weight = power_of_2(q.dot(k) * factor - static_cast<const C*>(e.statistics)[at]);
      dv.add(dout, weight);
      dk.add(q, weight * (dout.dot(v) - static_cast<const C*>(e.delta)[at]));
    }
  }
  dk.write(e, e.dk, row, dtype_of<C>, static_cast<C>(e.scale));
  dv.write(e, e.dv, row, dtype_of<C>, C(1));
}

bool is_wide(const CompressedJob& e) { return e.dtype == DType::f64; }
std::int64_t blocks_for_rows(std::int64_t rows) { return (rows + kWarps - 1) / kWarps; }

}  // namespace

void compressed_rows_forward(const CompressedJob& e, Stream stream) {
  start("compressed attention", is_wide(e) ? forward<double> : forward<float>, blocks_for_rows(e.B * e.H * e.N),
        kTileThreads, 0, stream, e);
}
void compressed_rows_choice(const CompressedJob& e, Stream stream) {
  const std::int64_t each = (kSide + e.width) * static_cast<std::int64_t>(is_wide(e) ? sizeof(double) : sizeof(float)),
                     rows = e.B * e.Hkv * e.N, fit = most_shared_bytes() / each;
  if (fit < 1)
    fail(Exit::config, "attention", e.width, " blocks of ", e.block,
         " keys in a row are more than a GPU's shared memory holds for a query of type nsa: take larger blocks, "
         "shorter rows or device.type=cpu");
  const std::int64_t warps = std::min<std::int64_t>(fit, kWarps);
  start("chosen blocks", is_wide(e) ? choose<double> : choose<float>, (rows + warps - 1) / warps,
        static_cast<int>(warps) * 32, static_cast<std::size_t>(warps * each), stream, e);
}
void compressed_rows_backward_queries(const CompressedJob& e, Stream stream) {
  start("compressed attention backward, queries", is_wide(e) ? backward_queries<double> : backward_queries<float>,
        blocks_for_rows(e.B * e.H * e.N), kTileThreads, 0, stream, e);
}
void compressed_rows_backward_keys(const CompressedJob& e, Stream stream) {
  start("compressed attention backward, keys", is_wide(e) ? backward_keys<double> : backward_keys<float>,
        blocks_for_rows(e.B * e.Hkv * e.grid.M), kTileThreads, 0, stream, e);
}

}  // namespace sieve::cuda
