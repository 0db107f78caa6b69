// Backward of pattern attention towards the queries by tensor cores, in the order of forward: one block per (row, query
// head, tile of 64 queries). It also leaves delta = dO . o of its queries for the pass of the keys.
#include "attention/kernels/cuda/pattern_tile.cuh"

namespace sieve::cuda {
namespace {

constexpr int kPart = 32;  // columns in work at a time: registers

// Logits of the keys of a part become their gradients; dp = dO . v.
__device__ __forceinline__ void differentiate(float (&s)[kPart / 2], const float (&dp)[kPart / 2], float factor,
                                              const RowWords& words, int part, const float (&statistics)[2],
                                              const float (&delta)[2]) {
#pragma unroll
  for (int x = 0; x < kPart / 2; ++x) {
    const int r = x / 2 % 2;
    const float weight = words.sees(part, x) ? quick_power_of_2(fmaf(s[x], factor, -statistics[r])) : 0.f;
    s[x] = weight * (dp[x] - delta[r]);
  }
}

// The statistics of the thread's two queries, and their delta for the pass of the keys.
__device__ __forceinline__ void exchange(const Engine& e, std::int64_t head_row, const int (&mine)[2],
                                         float (&statistics)[2], const float (&delta)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    statistics[r] = mine[r] < 0 ? 0 : static_cast<const float*>(e.statistics)[head_row + mine[r]];
    if (mine[r] >= 0 && static_cast<int>(threadIdx.x) % 4 == 0)
      static_cast<float*>(const_cast<void*>(e.delta))[head_row + mine[r]] = delta[r];
  }
}

template <int D>
__global__ void __launch_bounds__(kTileThreads, D == kSide ? 4 : 2)
    backward_queries(const Engine e, const PatternLists lists) {
  using Rows64 = Panel<D>;
  __shared__ int at[kSide];
  const auto thread = static_cast<int>(threadIdx.x);
  const PatternItem<false> t(e, lists, e.H);
  const std::int64_t kv = t.h / e.group(), head_row = (t.b * e.H + t.h) * e.T;
  auto* memory = reinterpret_cast<bf16*>(dynamic_shared());
  const HeadRows k(e.k, t.b, e.T, kv, D), v(e.v, t.b, e.T, kv, D);
  const auto fetch = [&](int n, std::int32_t entry) {
    const std::int64_t slot = static_cast<std::int64_t>(entry >> 1) * kSide;
    Rows64::fetch_two(memory + n % 2 * 2 * Rows64::kElements, k, v, t.order, slot, e.T);
    end_copies();
  };
  const auto entry_of = [&](int n) { return n < t.count ? t.entries[n] : 0; };
  std::int32_t entry = entry_of(0), next = entry_of(1);
  if (t.count > 0) fetch(0, entry);
  RowWords words, coming;
  words.read(t.words, entry);

  const int mine[2] = {t.own(warp_row(), e.T), t.own(warp_row() + 8, e.T)};
  std::uint32_t q[D / 16][4], dout[D / 16][4];
  float statistics[2], delta[2];
  Rows64::hold(dout, HeadRows(e.dout, t.b, e.T, t.h, D), mine);
  make_delta<D>(delta, dout, HeadRows({e.out, e.H * D, 0, DType::bf16}, t.b, e.T, t.h, D), mine);
  exchange(e, head_row, mine, statistics, delta);
  Rows64::hold(q, HeadRows(e.q, t.b, e.T, t.h, D), mine);
  if (thread < kSide) at[thread] = t.own(thread, e.T);
  const auto factor = static_cast<float>(e.scale * kLog2E);
  float s[kPart / 2], dp[kPart / 2], sums[D / kSide][kHeld];
  clear(sums);

  const auto between = [&] { return Between<D>{lists.between + t.b * e.T * e.features() + t.h * D, e.features()}; };
  if (!lists.begins) between().read(sums, mine);

  for (int n = 0; n < t.count; ++n) {
    await_copies();
    __syncthreads();  // the block has arrived, and the one before has no readers left
    if (n + 1 < t.count) fetch(n + 1, next);
    coming.read(t.words, n + 1 < t.count ? next : 0);
    const std::int32_t after = entry_of(n + 2);
    const bf16 *keys = memory + n % 2 * 2 * Rows64::kElements, *values = keys + Rows64::kElements;
#pragma unroll
    for (int part = 0; part < kSide / kPart; ++part) {
      Rows64::template multiply_transposed<kPart>(s, q, keys, part * kPart);
      Rows64::template multiply_transposed<kPart>(dp, dout, values, part * kPart);
      differentiate(s, dp, factor, words, part, statistics, delta);
      Rows64::template add_product<kPart>(sums, s, keys, part * kPart);
    }
    words = coming, entry = next, next = after;
  }

  if (!lists.ends) return between().write(sums, {1.f, 1.f}, mine);
  const float* stage = staged<float, D / kSide>(sums, {1.f, 1.f});
  bf16* dq = static_cast<bf16*>(e.dqkv) + t.b * e.T * e.features() + t.h * D;
  store_rows<D>(dq, e.features(), stage, at, e.rotary, true, static_cast<float>(e.scale));
}

template <int D>
void go(const Engine& e, const PatternLists& lists, const Stream& stream) {
  start("pattern backward, queries", backward_queries<D>, items_of(e, lists, e.H), kTileThreads,
        4 * sizeof(bf16) * Panel<D>::kElements, stream, e, lists);
}

}  // namespace

void pattern_backward_queries(const Engine& e, const PatternLists& lists, Stream stream) {
  if (e.D == kSide) go<kSide>(e, lists, stream);
  else go<2 * kSide>(e, lists, stream);
}

}  // namespace sieve::cuda
