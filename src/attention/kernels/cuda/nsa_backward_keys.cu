// Backward of attention over compressed keys towards keys and values by tensor cores: one block per (row, key-value
// head, 64 compressed keys, piece of the queries), past which the tiles of queries that see some of them stream, head
// by head of the group. Nobody else writes its sums: no atomics.
#include "attention/kernels/cuda/nsa_attention.cuh"

namespace sieve::cuda {
namespace {

constexpr int kPart = 32;  // columns in work at a time: registers

// At 128 features the block's own keys and values stay in shared memory: the sums fill the registers.
template <int D>
inline constexpr bool kHolds = D == kSide;

template <int D, bool held = kHolds<D>>
struct OwnKeys {
  std::uint32_t k[D / 16][4], v[D / 16][4];

  __device__ OwnKeys(bf16*, const HeadRows& keys, const HeadRows& values, std::int64_t, std::int64_t,
                     const int (&mine)[2]) {
    Panel<D>::hold(k, keys, mine);
    Panel<D>::hold(v, values, mine);
  }
};
template <int D>
struct OwnKeys<D, false> {
  const bf16 *k, *v;

  // The copies are ended and awaited with the first queries.
  __device__ OwnKeys(bf16* memory, const HeadRows& keys, const HeadRows& values, std::int64_t first, std::int64_t M,
                     const int (&)[2])
      : k(memory), v(memory + Panel<D>::kElements) {
    Panel<D>::fetch(memory, keys, nullptr, first, M);
    Panel<D>::fetch(memory + Panel<D>::kElements, values, nullptr, first, M);
  }
};

struct KeyItem {
  std::int64_t m0, h, b, piece;
  int low, tiles;  // tiles of queries [low, low + tiles) may see some key

  __device__ explicit KeyItem(const CompressedJob& e) {
    const std::int64_t sides = (e.grid.M + kSide - 1) / kSide, kvs = e.B * e.Hkv;
    const std::int64_t side = blockIdx.x % sides, head = blockIdx.x / sides % kvs;
    m0 = side * kSide, h = head % e.Hkv, b = head / e.Hkv, piece = blockIdx.x / sides / kvs;
    const auto all = static_cast<int>(e.tiles(kSide));
    // Both ends of what queries see ascend with them.
    low = first_tile(all, [&](int tile) {
      const std::int64_t last = (tile + std::int64_t{1}) * kSide;
      return e.seen(b, (last < e.N ? last : e.N) - 1).end > m0;
    });
    const int high =
        first_tile(all, [&](int tile) { return e.seen(b, tile * std::int64_t{kSide}).begin >= m0 + kSide; });
    tiles = high > low ? high - low : 0;
  }
  // The thread's first or second key, -1 beyond the last.
  __device__ int own(const CompressedJob& e, int r) const {
    const std::int64_t m = m0 + warp_row() + 8 * r;
    return m < e.grid.M ? static_cast<int>(m) : -1;
  }
  template <class Is>
  __device__ static int first_tile(int tiles, const Is& is) {
    int low = 0;
    for (int n = tiles; n > 0;) {
      const int half = n / 2;
      if (is(low + half)) n = half;
      else low += half + 1, n -= half + 1;
    }
    return low;
  }
};

struct QueryNotes {
  float statistics[kSide], delta[kSide];
  int from[kSide], to[kSide];  // keys that a query sees
};

// Logits and dO . v of the thread's two keys with the queries from `first` on become weights and gradients of logits.
__device__ __forceinline__ void differentiate(float (&s)[kPart / 2], float (&dp)[kPart / 2], float factor,
                                              const int (&mine)[2], const QueryNotes& note, int first) {
#pragma unroll
  for (int x = 0; x < kPart / 2; ++x) {
    const int column = first + column_of(x);
    const int m = mine[x / 2 % 2];
    const bool sees = m >= note.from[column] && m < note.to[column];
    s[x] = sees ? quick_power_of_2(fmaf(s[x], factor, -note.statistics[column])) : 0.f;
    dp[x] = sees ? s[x] * (dp[x] - note.delta[column]) : 0.f;
  }
}

template <int D>
__global__ void __launch_bounds__(kTileThreads, D == kSide ? 3 : 2) backward_keys(const CompressedJob e) {
  using Rows64 = Panel<D>;
  __shared__ QueryNotes notes[2];
  const auto thread = static_cast<int>(threadIdx.x);
  const KeyItem t(e);
  const std::int64_t total = t.tiles * e.group();
  const auto begin = static_cast<int>(total * t.piece / e.pieces),
             end = static_cast<int>(total * (t.piece + 1) / e.pieces);
  const int mine[2] = {t.own(e, 0), t.own(e, 1)};
  auto* memory = reinterpret_cast<bf16*>(dynamic_shared());
  const OwnKeys<D> own(memory + 4 * Rows64::kElements, e.keys(e.k, t.b, t.h), e.keys(e.v, t.b, t.h), t.m0, e.grid.M,
                       mine);
  const auto fetch = [&](int n) {
    const int side = (n - begin) % 2;
    bf16* to = memory + side * 2 * Rows64::kElements;
    const std::int64_t h = t.h * e.group() + n / t.tiles, n0 = (std::int64_t{t.low} + n % t.tiles) * kSide;
    Rows64::fetch(to, e.queries(e.q, t.b, h), nullptr, n0, e.N);
    Rows64::fetch(to + Rows64::kElements, e.queries(e.dout, t.b, h), nullptr, n0, e.N);
    QueryNotes& note = notes[side];
    const int r = thread % kSide;
    const bool real = n0 + r < e.N;
    const auto* from = static_cast<const float*>(thread < kSide ? e.statistics : e.delta);
    copy_4((thread < kSide ? note.statistics : note.delta) + r, from + e.head_row(t.b, h) + (real ? n0 + r : 0), real);
    end_copies();
    if (thread >= kSide) return;
    const Interval seen = e.seen(t.b, n0 + r);
    note.from[r] = seen.begin, note.to[r] = seen.end;
  };
  if (begin < end) fetch(begin);

  const auto factor = static_cast<float>(e.scale * kLog2E);
  float s[kPart / 2], dp[kPart / 2], dk[D / kSide][kHeld], dv[D / kSide][kHeld];
  clear(dk), clear(dv);

  for (int n = begin; n < end; ++n) {
    await_copies();
    __syncthreads();  // the queries have arrived, and those before have no readers left
    if (n + 1 < end) fetch(n + 1);
    const int side = (n - begin) % 2;
    const bf16 *q = memory + side * 2 * Rows64::kElements, *dout = q + Rows64::kElements;
    const QueryNotes& note = notes[side];
#pragma unroll
    for (int part = 0; part < kSide / kPart; ++part) {
      Rows64::template multiply_transposed<kPart>(s, own.k, q, part * kPart);
      Rows64::template multiply_transposed<kPart>(dp, own.v, dout, part * kPart);
      differentiate(s, dp, factor, mine, note, part * kPart);
      Rows64::template add_product<kPart>(dv, s, dout, part * kPart);
      Rows64::template add_product<kPart>(dk, dp, q, part * kPart);
    }
  }

  end_copies(), await_copies();  // own keys, where no query came
  const std::int64_t rows = (t.piece * e.B + t.b) * e.Hkv + t.h;
  const auto scale = static_cast<float>(e.scale);
  Between<D>{static_cast<float*>(e.dk) + rows * e.grid.M * D, D}.write(dk, {scale, scale}, mine);
  Between<D>{static_cast<float*>(e.dv) + rows * e.grid.M * D, D}.write(dv, {1.f, 1.f}, mine);
}

template <int D>
void go(const CompressedJob& e, const Stream& stream) {
  start("compressed attention backward, keys", backward_keys<D>,
        e.pieces * e.B * e.Hkv * ((e.grid.M + kSide - 1) / kSide), kTileThreads, compressed_shared_bytes(D, true),
        stream, e);
}

}  // namespace

std::size_t compressed_shared_bytes(std::int64_t D, bool backward) {
  if (D == kSide) return 4 * sizeof(bf16) * Panel<kSide>::kElements;
  return (backward ? 6 : 4) * sizeof(bf16) * Panel<2 * kSide>::kElements;
}

void compressed_backward_keys(const CompressedJob& e, Stream stream) {
  if (e.D == kSide) go<kSide>(e, stream);
  else go<2 * kSide>(e, stream);
}

}  // namespace sieve::cuda
