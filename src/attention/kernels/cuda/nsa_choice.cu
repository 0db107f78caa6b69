// The blocks that the probabilities of attention over compressed keys choose, by tensor cores: one block per (row,
// key-value head, tile of queries). Given the softmax's statistics the probabilities are made once more, summed over
// the heads of the group, and added to the importance of every block in shared memory.
#include "attention/kernels/cuda/nsa_choice.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWarpRows = 16, kSumStride = kSide + 2;  // pairs of columns, and few banks met twice
constexpr std::int64_t kStaticBytes = 1024;            // more than a block has beside

template <int D>
constexpr std::size_t kPanelBytes = 2 * sizeof(bf16) * Panel<D>::kElements;

// s = probabilities of the thread's elements, summed over the heads of key-value head t.h.
template <int D>
__device__ inline void sum_probabilities(float* sum, const CompressedJob& e, const CompressedTile& t, const bf16* keys,
                                         int first, const int (&mine)[2], const Interval (&seen)[2]) {
  const auto factor = static_cast<float>(e.scale * kLog2E);
#pragma unroll
  for (int x = 0; x < kHeld; ++x) sum[x] = 0;
  for (std::int64_t h = t.h * e.group(); h < (t.h + 1) * e.group(); ++h) {
    std::uint32_t q[D / 16][4];
    float s[kHeld], statistics[2];
    Panel<D>::hold(q, e.queries(e.q, t.b, h), mine);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      statistics[r] = mine[r] < 0 ? 0 : static_cast<const float*>(e.statistics)[e.head_row(t.b, h) + mine[r]];
    Panel<D>::template multiply_transposed<kSide>(s, q, keys, 0);
#pragma unroll
    for (int x = 0; x < kHeld; ++x) {
      const int r = x / 2 % 2;
      if (seen[r].contains(first + column_of(x))) sum[x] += quick_power_of_2(fmaf(s[x], factor, -statistics[r]));
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kTileThreads, D == kSide ? 4 : 2) choose(const CompressedJob e, const int rows) {
  using Rows64 = Panel<D>;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const CompressedTile t(e, e.Hkv, rows);
  auto* memory = reinterpret_cast<bf16*>(dynamic_shared());
  auto* sums = reinterpret_cast<float*>(dynamic_shared() + kPanelBytes<D>) + warp * kWarpRows * kSumStride;
  auto* importance = reinterpret_cast<float*>(dynamic_shared() + kPanelBytes<D>) + rows * kSumStride +
                     static_cast<std::int64_t>(warp) * kWarpRows * e.width;
  const bool works = warp * kWarpRows < rows;  // the others only copy
  const HeadRows k = e.keys(e.k, t.b, t.h);
  const auto fetch = [&](int n) {
    Rows64::fetch(memory + n % 2 * Rows64::kElements, k, nullptr, t.keys.begin + n * kSide, t.keys.end);
    end_copies();
  };
  const int count = e.blocks > 3 ? t.chunks() : 0;
  if (count > 0) fetch(0);
  if (works && count > 0)
    for (int x = lane; x < kWarpRows * e.width; x += 32) importance[x] = 0;
  const int mine[2] = {works ? t.own(e, warp_row()) : -1, works ? t.own(e, warp_row() + 8) : -1};
  const Interval seen[2] = {e.seen(t.b, t.n0 + warp_row()), e.seen(t.b, t.n0 + warp_row() + 8)};

  for (int n = 0; n < count; ++n) {
    await_copies();
    __syncthreads();  // the keys have arrived, and those before have no readers left
    if (n + 1 < count) fetch(n + 1);
    if (!works) continue;
    const int first = t.keys.begin + n * kSide;
    float s[kHeld];
    sum_probabilities<D>(s, e, t, memory + n % 2 * Rows64::kElements, first, mine, seen);
    __syncwarp();  // the last chunk's sums have been read
#pragma unroll
    for (int x = 0; x < kHeld; ++x) sums[(lane / 4 + (x & 2) * 4) * kSumStride + column_of(x)] = s[x];
    __syncwarp();
    for (int r = 0; r < kWarpRows; ++r) {
      const Interval half = r < 8 ? seen[0] : seen[1];  // of the lane that owns row r
      const Interval own{__shfl_sync(kWholeWarp, half.begin, r % 8 * 4), __shfl_sync(kWholeWarp, half.end, r % 8 * 4)};
      add_importance(e, sums + r * kSumStride, spans::max(own.begin - first, 0), spans::min(own.end - first, kSide),
                     first - own.begin, importance + r * e.width);
    }
  }
  __syncwarp();
  for (int r = 0; works && r < kWarpRows; ++r) {
    const std::int64_t x = t.n0 + warp * kWarpRows + r;
    if (x >= e.N) break;
    write_choice(e, e.position(t.b, x), importance + r * e.width,
                 e.choice + ((t.b * e.Hkv + t.h) * e.N + x) * e.blocks);
  }
}

template <int D>
bool go(const CompressedJob& e, const Stream& stream) {
  for (int rows = kSide; rows >= kWarpRows; rows /= 2) {
    const std::size_t shared = kPanelBytes<D> + sizeof(float) * static_cast<std::size_t>(rows * (kSumStride + e.width));
    if (static_cast<std::int64_t>(shared) + kStaticBytes > most_shared_bytes()) continue;
    start("chosen blocks", choose<D>, e.B * e.Hkv * e.tiles(rows), kTileThreads, shared, stream, e, rows);
    return true;
  }
  return false;
}

}  // namespace

bool compressed_choice(const CompressedJob& e, Stream stream) {
  return e.D == kSide ? go<kSide>(e, stream) : go<2 * kSide>(e, stream);
}

}  // namespace sieve::cuda
