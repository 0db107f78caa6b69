// The indexer's loss and dI = r - p: the log of every softmax's sum first, then the pairs.
#include "attention/kernels/cuda/index_tiles.cuh"

namespace sieve::cuda {
namespace {

// One block per (tile, head of attention) and one per tile for I: the log of the sum of exp over the chosen keys, in
// units of log 2; 1e30 where none is chosen, so that every weight is 0.
template <int kParts>
__global__ void __launch_bounds__(kTileThreads, 3) log_sums(const IndexTiles v) {
  const auto H = static_cast<int>(v.H);
  const IndexTile t(v, v.H + 1);
  const bool index = t.sharer == H;
  const int from = t.sharer, to = index ? H + static_cast<int>(v.Hi) : from + 1;
  IndexWalk<kParts> walk(v, t, 0, t.count, from, to, 0);
  float s[kHeld], score[kHeld], top[2] = {static_cast<float>(kNothing), static_cast<float>(kNothing)},
                                denominator[2] = {0, 0};
  RowWords words;
  for (int n = 0; n < t.count; ++n) {
    words.read(t.words, t.entries[n]);
#pragma unroll
    for (int x = 0; x < kHeld; ++x) score[x] = 0;
    for (int head = from; head < to; ++head) {
      float weight[2];
      if (index) read_weights(weight, v, t, head);
      walk.multiply(s, head);
      if (index) add_scores(score, s, weight);
    }
    const float factor = index ? static_cast<float>(kLog2E) : v.factor;
    float high[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int x = 0; x < kHeld; ++x) {
      s[x] = words.sees(0, x) ? (index ? score[x] : s[x]) * factor : -INFINITY;
      high[x / 2 % 2] = fmaxf(high[x / 2 % 2], s[x]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float moved = fmaxf(top[r], row_max(high[r]));
      denominator[r] *= quick_power_of_2(top[r] - moved);
      top[r] = moved;
    }
#pragma unroll
    for (int x = 0; x < kHeld; ++x) denominator[x / 2 % 2] += quick_power_of_2(s[x] - top[x / 2 % 2]);  // NaN stays one
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = row_sum(denominator[r]);
    if (threadIdx.x % 4 != 0 || t.row[r] >= v.T) continue;
    v.log_sums[(t.b * (v.H + 1) + t.sharer) * v.T + t.row[r]] =
        sum == 0 ? static_cast<float>(-kNothing) : top[r] + logarithm_2(sum);
  }
}

// Of the thread's two rows; beyond the row what makes every weight 0.
__device__ void read_log_sums(float (&sums)[2], const IndexTiles& v, const IndexTile& t, std::int64_t head) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
    sums[r] = t.row[r] < v.T ? v.log_sums[(t.b * (v.H + 1) + head) * v.T + t.row[r]] : static_cast<float>(-kNothing);
}

// p, summed over the heads, becomes dI: 0 where the query did not choose the key. The loss in units of log 2.
__device__ void compare(float* p, const float* score, const float (&index_sums)[2], const RowWords& words, float mean,
                        double (&loss)[2]) {
  float sum[2] = {0, 0};
#pragma unroll
  for (int x = 0; x < kHeld; ++x) {
    const float target = p[x] * mean, log_r = fmaf(score[x], static_cast<float>(kLog2E), -index_sums[x / 2 % 2]);
    const bool sees = words.sees(0, x);
    if (sees && !(target <= 0)) sum[x / 2 % 2] += target * (logarithm_2(target) - log_r);  // NaN is passed on
    p[x] = sees ? quick_power_of_2(log_r) - target : 0.f;
  }
  loss[0] += static_cast<double>(sum[0]), loss[1] += static_cast<double>(sum[1]);
}

// One block per (tile, run of kRun entries of its list).
template <int kParts>
__global__ void __launch_bounds__(kTileThreads, 3) differences(const IndexTiles v) {
  const auto H = static_cast<int>(v.H), heads = H + static_cast<int>(v.Hi);
  const IndexTile t(v, v.runs());
  const int begin = t.sharer * kRun, end = begin + kRun < t.count ? begin + kRun : t.count;
  if (begin >= end) return;
  IndexWalk<kParts> walk(v, t, begin, end, 0, heads, 0);
  float s[kHeld], p[kHeld], score[kHeld], index_sums[2];
  double loss[2] = {0, 0};
  read_log_sums(index_sums, v, t, v.H);
  RowWords words;
  for (int n = begin; n < end; ++n) {
    const std::int32_t entry = t.entries[n];
    words.read(t.words, entry);
#pragma unroll
    for (int x = 0; x < kHeld; ++x) p[x] = score[x] = 0;
    for (int head = 0; head < H; ++head) {
      float sums[2];
      read_log_sums(sums, v, t, head);
      walk.multiply(s, head);
#pragma unroll
      for (int x = 0; x < kHeld; ++x) p[x] += quick_power_of_2(fmaf(s[x], v.factor, -sums[x / 2 % 2]));
    }
    for (int head = H; head < heads; ++head) {
      float weight[2];
      read_weights(weight, v, t, head);
      walk.multiply(s, head);
      add_scores(score, s, weight);
    }
    compare(p, score, index_sums, words, 1 / static_cast<float>(H), loss);
    if (v.differences == nullptr) continue;
    const std::int64_t block = entry >> 1;
    float* to = v.difference(t.unit, block);
#pragma unroll
    for (int x = 0; x < kHeld; x += 2)
      *reinterpret_cast<float2*>(to + row_of(x) * kSide + column_of(x)) = make_float2(p[x], p[x + 1]);
    if (threadIdx.x == 0) v.seen[t.unit * v.lists.sides + block] = 1;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const double sum = row_sum(loss[r]);
    if (threadIdx.x % 4 == 0) v.part_losses[(t.unit * v.runs() + t.sharer) * kSide + warp_row() + 8 * r] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) add_losses(const IndexTiles v) {
  SIEVE_GRID_STRIDE(x, v.lists.units * kSide) {
    const std::int64_t unit = x / kSide, i = side_of<false>(v.lists, unit) * kSide + x % kSide;
    if (i >= v.T) continue;
    double sum = 0;
    for (std::int64_t run = 0; run * kRun < v.lists.counts[unit]; ++run)
      sum += v.part_losses[(unit * v.runs() + run) * kSide + x % kSide];
    v.losses[v.lists.plan(unit) * v.T + i] = sum * kLn2;
  }
}

}  // namespace

void index_log_sums(const IndexTiles& v, int parts, Stream stream) {
  start("index loss, sums", parts == 1 ? log_sums<1> : log_sums<3>, v.lists.units * (v.H + 1), kTileThreads,
        parts == 1 ? IndexPanel<1>::kShared : IndexPanel<3>::kShared, stream, v);
}

void index_differences(const IndexTiles& v, int parts, Stream stream) {
  start("index loss", parts == 1 ? differences<1> : differences<3>, v.lists.units * v.runs(), kTileThreads,
        parts == 1 ? IndexPanel<1>::kShared : IndexPanel<3>::kShared, stream, v);
  start("index loss, rows", add_losses, blocks_for(v.lists.units * kSide), kThreads, 0, stream, v);
}

}  // namespace sieve::cuda
