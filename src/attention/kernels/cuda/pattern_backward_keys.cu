// Backward of pattern attention towards keys and values by tensor cores: one block per (row, key-value head, 64 keys),
// past which the tiles of queries that see some of them stream, head by head of the group. Nobody else writes its keys:
// no atomics.
#include "attention/kernels/cuda/pattern_tile.cuh"

namespace sieve::cuda {
namespace {

constexpr int kPart = 32;  // columns in work at a time: registers

// At 128 features the block's own keys and values stay in shared memory: the sums fill the registers.
template <int D>
inline constexpr bool kHolds = D == kSide;
template <int D>
inline constexpr std::size_t kShared = (kHolds<D> ? 4 : 6) * sizeof(bf16) * Panel<D>::kElements;

// The keys and values of the block as left operands.
template <int D, bool held = kHolds<D>>
struct OwnRows {
  std::uint32_t k[D / 16][4], v[D / 16][4];

  __device__ OwnRows(bf16*, const HeadRows& keys, const HeadRows& values, const PatternItem<true>& t, std::int64_t T) {
    const int mine[2] = {t.own(warp_row(), T), t.own(warp_row() + 8, T)};
    Panel<D>::hold(k, keys, mine);
    Panel<D>::hold(v, values, mine);
  }
};
template <int D>
struct OwnRows<D, false> {
  const bf16 *k, *v;

  // The copies are ended and awaited with the first queries.
  __device__ OwnRows(bf16* memory, const HeadRows& keys, const HeadRows& values, const PatternItem<true>& t,
                     std::int64_t T)
      : k(memory), v(memory + Panel<D>::kElements) {
    Panel<D>::fetch(memory, keys, t.order, t.side * kSide, T);
    Panel<D>::fetch(memory + Panel<D>::kElements, values, t.order, t.side * kSide, T);
  }
};

// Sums of dK (part 0) or dV (1) from phase to phase.
template <int D>
__device__ __forceinline__ Between<D> between_of(const Engine& e, const PatternLists& lists, const PatternItem<true>& t,
                                                 int part) {
  const std::int64_t head = e.H + part * e.Hkv + t.h;
  return Between<D>{lists.between + t.b * e.T * e.features() + head * D, e.features()};
}

struct QueryNotes {
  float statistics[kSide], delta[kSide];
};

// Logits and dO . v of the queries of a part become weights and gradients of logits.
__device__ __forceinline__ void differentiate(float (&s)[kPart / 2], float (&dp)[kPart / 2], float factor,
                                              const RowWords& words, int part, const QueryNotes& note) {
#pragma unroll
  for (int x = 0; x < kPart / 2; ++x) {
    const int column = part * kPart + column_of(x);
    s[x] = words.sees(part, x) ? quick_power_of_2(fmaf(s[x], factor, -note.statistics[column])) : 0.f;
    dp[x] = s[x] * (dp[x] - note.delta[column]);
  }
}

template <int D>
__device__ __forceinline__ void store(const Engine& e, const PatternItem<true>& t, const int* at,
                                      const float (*dk)[kHeld], const float (*dv)[kHeld]) {
#pragma unroll
  for (int part = 0; part < 2; ++part) {  // dK, dV
    const float* stage = staged<float, D / kSide>(part == 0 ? dk : dv, {1.f, 1.f});
    const std::int64_t head = e.H + part * e.Hkv + t.h;
    bf16* out = static_cast<bf16*>(e.dqkv) + t.b * e.T * e.features() + head * D;
    store_rows<D>(out, e.features(), stage, at, e.rotary, part == 0, part == 0 ? static_cast<float>(e.scale) : 1.f);
  }
}

// What 64 queries give to the thread's keys.
template <int D>
__device__ __forceinline__ void add_pairs(const OwnRows<D>& own, const bf16* q, const bf16* dout, float factor,
                                          const RowWords& words, const QueryNotes& note, float (&s)[kPart / 2],
                                          float (&dp)[kPart / 2], float (*dk)[kHeld], float (*dv)[kHeld]) {
#pragma unroll
  for (int part = 0; part < kSide / kPart; ++part) {
    Panel<D>::template multiply_transposed<kPart>(s, own.k, q, part * kPart);
    Panel<D>::template multiply_transposed<kPart>(dp, own.v, dout, part * kPart);
    differentiate(s, dp, factor, words, part, note);
    Panel<D>::template add_product<kPart>(dv, s, dout, part * kPart);
    Panel<D>::template add_product<kPart>(dk, dp, q, part * kPart);
  }
}

template <int D>
__global__ void __launch_bounds__(kTileThreads, D == kSide ? 3 : 2)
    backward_keys(const Engine e, const PatternLists lists) {
  using Rows64 = Panel<D>;
  __shared__ int at[kSide];
  __shared__ QueryNotes notes[2];
  const auto thread = static_cast<int>(threadIdx.x);
  const PatternItem<true> t(e, lists, e.Hkv);
  const auto total = static_cast<int>(t.count * e.group());
  auto* memory = reinterpret_cast<bf16*>(dynamic_shared());
  const OwnRows<D> own(memory + 4 * Rows64::kElements, HeadRows(e.k, t.b, e.T, t.h, D), HeadRows(e.v, t.b, e.T, t.h, D),
                       t, e.T);
  if (thread < kSide) at[thread] = t.own(thread, e.T);
  const auto fetch = [&](int n, std::int32_t entry) {
    bf16* to = memory + n % 2 * 2 * Rows64::kElements;
    const std::int64_t slot = static_cast<std::int64_t>(entry >> 1) * kSide, h = t.h * e.group() + n / t.count;
    Rows64::fetch(to, HeadRows(e.q, t.b, e.T, h, D), t.order, slot, e.T);
    Rows64::fetch(to + Rows64::kElements, HeadRows(e.dout, t.b, e.T, h, D), t.order, slot, e.T);
    const int r = thread % kSide, i = PatternLists::position(t.order, slot + r, e.T);
    const auto* from = static_cast<const float*>(thread < kSide ? e.statistics : e.delta);
    copy_4((thread < kSide ? notes[n % 2].statistics : notes[n % 2].delta) + r,
           from + (t.b * e.H + h) * e.T + (i < 0 ? 0 : i), i >= 0);
    end_copies();
  };
  const auto entry_of = [&](int n) { return n < total ? t.entries[n % t.count] : 0; };
  std::int32_t entry = entry_of(0), next = entry_of(1);
  if (total > 0) fetch(0, entry);
  RowWords words, coming;
  words.read(t.words, entry);

  const auto factor = static_cast<float>(e.scale * kLog2E);
  float s[kPart / 2], dp[kPart / 2], dk[D / kSide][kHeld], dv[D / kSide][kHeld];
  clear(dk), clear(dv);

  if (!lists.begins) {
    const int mine[2] = {t.own(warp_row(), e.T), t.own(warp_row() + 8, e.T)};
    between_of<D>(e, lists, t, 0).read(dk, mine);
    between_of<D>(e, lists, t, 1).read(dv, mine);
  }

  for (int n = 0; n < total; ++n) {
    await_copies();
    __syncthreads();  // the queries have arrived, and those before have no readers left
    if (n + 1 < total) fetch(n + 1, next);
    coming.read(t.words, n + 1 < total ? next : 0);
    const std::int32_t after = entry_of(n + 2);
    const bf16 *q = memory + n % 2 * 2 * Rows64::kElements, *dout = q + Rows64::kElements;
    add_pairs<D>(own, q, dout, factor, words, notes[n % 2], s, dp, dk, dv);
    words = coming, entry = next, next = after;
  }

  end_copies(), await_copies();  // own rows, where no query came
  if (!lists.ends) {
    const int mine[2] = {t.own(warp_row(), e.T), t.own(warp_row() + 8, e.T)};
    between_of<D>(e, lists, t, 0).write(dk, {1.f, 1.f}, mine);
    return between_of<D>(e, lists, t, 1).write(dv, {1.f, 1.f}, mine);
  }
  store<D>(e, t, at, dk, dv);
}

template <int D>
void go(const Engine& e, const PatternLists& lists, const Stream& stream) {
  start("pattern backward, keys", backward_keys<D>, items_of(e, lists, e.Hkv), kTileThreads, kShared<D>, stream, e,
        lists);
}

}  // namespace

bool pattern_fits_tensor_cores(const Engine& e, bool backward) {
  if (!fits_tensor_cores(e)) return false;
  const std::size_t shared = e.D == kSide ? kShared<kSide>
                             : backward   ? kShared<2 * kSide>
                                          : 4 * sizeof(bf16) * Panel<2 * kSide>::kElements;
  constexpr std::int64_t kStatic = 2048;  // beside it, at most
  return static_cast<std::int64_t>(shared) + kStatic <= most_shared_bytes();
}

void pattern_backward_keys(const Engine& e, const PatternLists& lists, Stream stream) {
  if (e.D == kSide) go<kSide>(e, lists, stream);
  else go<2 * kSide>(e, lists, stream);
}

}  // namespace sieve::cuda
