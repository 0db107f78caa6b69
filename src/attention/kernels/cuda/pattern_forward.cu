// Forward of pattern attention by tensor cores: one block per (row, query head, tile of 64 queries). Keys and values of
// the next block are on their way while one is in work. The online softmax is that of Milakov & Gimelshein 2018 (arXiv
// 1805.02867) in the tiling of Dao et al. 2022 (arXiv 2205.14135), in units of log 2.
#include "attention/kernels/cuda/pattern_tile.cuh"

namespace sieve::cuda {
namespace {

// What the phase before left, as if all of it were one pair, of weight 1.
template <int D, class Row>
__device__ __forceinline__ void go_on(float (&top)[2], float (&denominator)[2], float (&sums)[D / kSide][kHeld],
                                      const Between<D>& between, const float* statistics, const Row& row_of_head,
                                      const int (&mine)[2]) {
  between.read(sums, mine);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (mine[r] < 0) continue;
    const float before = statistics[row_of_head(mine[r])];
    if (before < static_cast<float>(-kNothing)) top[r] = before, denominator[r] = threadIdx.x % 4 == 0 ? 1.f : 0.f;
  }
}

__device__ __forceinline__ void hide(float (&s)[kHeld], const RowWords& words) {
#pragma unroll
  for (int x = 0; x < kHeld; ++x) s[x] = words.sees(0, x) ? s[x] : -INFINITY;
}

template <int D>
__global__ void __launch_bounds__(kTileThreads, D == kSide ? 4 : 2) forward(const Engine e, const PatternLists lists) {
  using Rows64 = Panel<D>;
  __shared__ int at[kSide];
  const auto thread = static_cast<int>(threadIdx.x);
  const PatternItem<false> t(e, lists, e.H);
  const std::int64_t kv = t.h / e.group();
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
  std::uint32_t q[D / 16][4];
  Rows64::hold(q, HeadRows(e.q, t.b, e.T, t.h, D), mine);
  if (thread < kSide) at[thread] = t.own(thread, e.T);
  const auto factor = static_cast<float>(e.scale * kLog2E);
  float top[2] = {static_cast<float>(kNothing), static_cast<float>(kNothing)}, denominator[2] = {0, 0}, s[kHeld],
        sums[D / kSide][kHeld];
  clear(sums);

  const auto between = [&] { return Between<D>{lists.between + (t.b * e.T * e.H + t.h) * D, e.H * D}; };
  const auto row_of_head = [&](int i) { return (t.b * e.H + t.h) * e.T + i; };
  auto* statistics = static_cast<float*>(e.statistics);
  if (!lists.begins) go_on<D>(top, denominator, sums, between(), statistics, row_of_head, mine);

  for (int n = 0; n < t.count; ++n) {
    await_copies();
    __syncthreads();  // the block has arrived, and the one before has no readers left
    if (n + 1 < t.count) fetch(n + 1, next);
    coming.read(t.words, n + 1 < t.count ? next : 0);
    const std::int32_t after = entry_of(n + 2);
    const bf16* keys = memory + n % 2 * 2 * Rows64::kElements;
    Rows64::template multiply_transposed<kSide>(s, q, keys, 0);
    if ((entry & 1) != 0) hide(s, words);
    advance<D>(s, top, denominator, sums, factor);
    Rows64::template add_product<kSide>(sums, s, keys + Rows64::kElements, 0);
    words = coming, entry = next, next = after;
  }

  float inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    inverse[r] = finish(denominator[r]);
    if (statistics == nullptr || mine[r] < 0 || thread % 4 != 0) continue;
    statistics[row_of_head(mine[r])] = statistic(top[r], denominator[r]);
  }
  if (!lists.ends) return between().write(sums, inverse, mine);
  const float* stage = staged<float, D / kSide>(sums, inverse);
  bf16* out = static_cast<bf16*>(e.out) + (t.b * e.T * e.H + t.h) * D;
  store_rows<D>(out, e.H * D, stage, at, e.rotary, false, 1.f);
}

template <int D>
void go(const Engine& e, const PatternLists& lists, const Stream& stream) {
  start("pattern forward", forward<D>, items_of(e, lists, e.H), kTileThreads, 4 * sizeof(bf16) * Panel<D>::kElements,
        stream, e, lists);
}

}  // namespace

void pattern_forward(const Engine& e, const PatternLists& lists, Stream stream) {
  if (e.D == kSide) go<kSide>(e, lists, stream);
  else go<2 * kSide>(e, lists, stream);
}

}  // namespace sieve::cuda
