// Attention over compressed keys by tensor cores: one block per (row, query head, tile of 64 queries), past which the
// compressed keys that end at or before its last query stream.
#include "attention/kernels/cuda/nsa_attention.cuh"

namespace sieve::cuda {
namespace {

template <int D>
__global__ void __launch_bounds__(kTileThreads, D == kSide ? 4 : 2) forward(const CompressedJob e) {
  using Rows64 = Panel<D>;
  __shared__ int at[kSide];
  const auto thread = static_cast<int>(threadIdx.x);
  const CompressedTile t(e, e.H, kSide);
  const std::int64_t kv = t.h / e.group();
  auto* memory = reinterpret_cast<bf16*>(dynamic_shared());
  const HeadRows k = e.keys(e.k, t.b, kv), v = e.keys(e.v, t.b, kv);
  const auto fetch = [&](int n) {
    Rows64::fetch_two(memory + n % 2 * 2 * Rows64::kElements, k, v, nullptr, t.keys.begin + n * kSide, t.keys.end);
    end_copies();
  };
  const int count = t.chunks();
  if (count > 0) fetch(0);

  const int mine[2] = {t.own(e, warp_row()), t.own(e, warp_row() + 8)};
  const Interval seen[2] = {e.seen(t.b, t.n0 + warp_row()), e.seen(t.b, t.n0 + warp_row() + 8)};
  std::uint32_t q[D / 16][4];
  Rows64::hold(q, e.queries(e.q, t.b, t.h), mine);
  if (thread < kSide) at[thread] = t.own(e, thread);
  const auto factor = static_cast<float>(e.scale * kLog2E);
  float top[2] = {static_cast<float>(kNothing), static_cast<float>(kNothing)}, denominator[2] = {0, 0}, s[kHeld],
        sums[D / kSide][kHeld];
  clear(sums);

  for (int n = 0; n < count; ++n) {
    await_copies();
    __syncthreads();  // the keys have arrived, and those before have no readers left
    if (n + 1 < count) fetch(n + 1);
    const bf16* keys = memory + n % 2 * 2 * Rows64::kElements;
    const int first = t.keys.begin + n * kSide;
    Rows64::template multiply_transposed<kSide>(s, q, keys, 0);
#pragma unroll
    for (int x = 0; x < kHeld; ++x) s[x] = seen[x / 2 % 2].contains(first + column_of(x)) ? s[x] : -INFINITY;
    advance<D>(s, top, denominator, sums, factor);
    Rows64::template add_product<kSide>(sums, s, keys + Rows64::kElements, 0);
  }

  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    inverse[r] = finish(denominator[r]);
    if (mine[r] < 0 || thread % 4 != 0) continue;
    static_cast<float*>(e.statistics)[e.head_row(t.b, t.h) + mine[r]] = statistic(top[r], denominator[r]);
  }
  const float* stage = staged<float, D / kSide>(sums, inverse);
  bf16* out = static_cast<bf16*>(e.out) + e.query(t.b, 0, t.h);
  store_rows<D>(out, e.H * D, stage, at, RotaryView{}, false, 1.f);
}

template <int D>
void go(const CompressedJob& e, const Stream& stream) {
  start("compressed attention", forward<D>, e.B * e.H * e.tiles(kSide), kTileThreads, compressed_shared_bytes(D, false),
        stream, e);
}

}  // namespace

void compressed_forward(const CompressedJob& e, Stream stream) {
  if (e.D == kSide) go<kSide>(e, stream);
  else go<2 * kSide>(e, stream);
}

}  // namespace sieve::cuda
