// Backward of attention over compressed keys towards the queries by tensor cores, in the order of forward. It also
// leaves delta = dO . o for the pass of the keys.
#include "attention/kernels/cuda/nsa_attention.cuh"

namespace sieve::cuda {
namespace {

constexpr int kPart = 32;  // columns in work at a time: registers

template <int D>
__global__ void __launch_bounds__(kTileThreads, D == kSide ? 4 : 2) backward_queries(const CompressedJob e) {
  using Rows64 = Panel<D>;
  __shared__ int at[kSide];
  const auto thread = static_cast<int>(threadIdx.x);
  const CompressedTile t(e, e.H, kSide);
  const std::int64_t kv = t.h / e.group(), head_row = e.head_row(t.b, t.h);
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
  std::uint32_t q[D / 16][4], dout[D / 16][4];
  float statistics[2], delta[2];
  Rows64::hold(dout, e.queries(e.dout, t.b, t.h), mine);
  make_delta<D>(delta, dout, e.queries(e.out, t.b, t.h), mine);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    statistics[r] = mine[r] < 0 ? 0 : static_cast<const float*>(e.statistics)[head_row + mine[r]];
    if (mine[r] >= 0 && thread % 4 == 0) static_cast<float*>(e.delta)[head_row + mine[r]] = delta[r];
  }
  Rows64::hold(q, e.queries(e.q, t.b, t.h), mine);
  if (thread < kSide) at[thread] = t.own(e, thread);
  const auto factor = static_cast<float>(e.scale * kLog2E);
  float s[kPart / 2], dp[kPart / 2], sums[D / kSide][kHeld];
  clear(sums);

  for (int n = 0; n < count; ++n) {
    await_copies();
    __syncthreads();  // the keys have arrived, and those before have no readers left
    if (n + 1 < count) fetch(n + 1);
    const bf16 *keys = memory + n % 2 * 2 * Rows64::kElements, *values = keys + Rows64::kElements;
    const int first = t.keys.begin + n * kSide;
#pragma unroll
    for (int part = 0; part < kSide / kPart; ++part) {
      Rows64::template multiply_transposed<kPart>(s, q, keys, part * kPart);
      Rows64::template multiply_transposed<kPart>(dp, dout, values, part * kPart);
#pragma unroll
      for (int x = 0; x < kPart / 2; ++x) {
        const int r = x / 2 % 2;
        const bool sees = seen[r].contains(first + part * kPart + column_of(x));
        s[x] = sees ? quick_power_of_2(fmaf(s[x], factor, -statistics[r])) * (dp[x] - delta[r]) : 0.f;
      }
      Rows64::template add_product<kPart>(sums, s, keys, part * kPart);
    }
  }

  const float* stage = staged<float, D / kSide>(sums, {1.f, 1.f});
  bf16* dq = static_cast<bf16*>(e.dq) + e.query(t.b, 0, t.h);
  store_rows<D>(dq, e.H * D, stage, at, RotaryView{}, false, static_cast<float>(e.scale));
}

template <int D>
void go(const CompressedJob& e, const Stream& stream) {
  start("compressed attention backward, queries", backward_queries<D>, e.B * e.H * e.tiles(kSide), kTileThreads,
        compressed_shared_bytes(D, false), stream, e);
}

}  // namespace

void compressed_backward_queries(const CompressedJob& e, Stream stream) {
  if (e.D == kSide) go<kSide>(e, stream);
  else go<2 * kSide>(e, stream);
}

}  // namespace sieve::cuda
