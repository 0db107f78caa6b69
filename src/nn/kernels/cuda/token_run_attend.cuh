// The attention of a token that runs in one launch: a block a (key-value head, split of the cache's rows). The rows
// that were there before the token come into shared memory nearly a layer ahead; a team of L lanes takes a row of them.
// Maxima of logits are in powers of two.
#pragma once

#include "attention/kernels/cuda/decode_step.cuh"
#include "nn/kernels/cuda/token_run_copies.cuh"
#include "nn/kernels/cuda/token_words.cuh"
#include "nn/kernels/token_run.h"

namespace sieve::cuda {

constexpr int kRunThreads = 512;
constexpr int kRunWarps = kRunThreads / 32;
constexpr int kTwo = 2;             // rows of a team at once
constexpr int kCarried = 2;         // rows that a token moves: its own, and the one that leaves the window for a slot
constexpr float kNoLogit = -1e30f;  // below every logit
constexpr std::int64_t kMaxSplits = 8;  // of a head's rows
constexpr float kLog2E = 1.4426950408889634f;

// The shared memory of the attention; H: rows of a split that are held there.
template <class T>
struct AttendSpace {
  T* raw;                            // (group + 2, D) q, k, v of the token as they are
  float* query;                      // (group, D) turned, scaled, times log2 e
  T *keys, *values;                  // (H + 2, D), the last two those that the token moves
  float* gates;                      // (H + 2)
  float *tops, *sums;                // (warps)
  float* outs;                       // (warps, D)
  const float *turn_cos, *turn_sin;  // (R)
};

// Rows of a key-value head's cache that hold earlier keys, in the order of the cache: sinks and ring (or all), slots.
struct RunRows {
  int kept, start, count;  // rows before the slots, the row that the token takes, all rows that may be seen
  std::int64_t position;

  __device__ RunRows(const DecodeAttendArgs& a, std::int64_t at) : position(at) {
    if (a.kind == AttentionKind::full) {
      kept = start = count = static_cast<int>(position);
      return;
    }
    const int sinks = static_cast<int>(a.sinks), W = static_cast<int>(a.window);
    kept = sinks + W, count = kept + (a.kind == AttentionKind::sparsek ? static_cast<int>(a.selection.k) : 0);
    const std::int64_t since = position - sinks;
    if (since < 0) start = static_cast<int>(position);
    else if (since >> 32 == 0) start = sinks + static_cast<int>(static_cast<std::uint32_t>(since) % W);
    else start = sinks + static_cast<int>(since % W);
  }
  // m of row r as the query sees it, -1: not at all. What comes into a slot with this token is the business of the
  // split that moves rows.
  __device__ float gate(int r, const float* seen) const {
    if (r < kept) return r < position && r != start ? 1.f : -1.f;
    return seen[r - kept];
  }
};

// A block's part of the rows.
struct RunPart {
  int kv, split, begin, count;

  __device__ RunPart(const TokenRunArgs& run, const RunRows& rows, std::uint32_t unit) {
    const auto S = static_cast<std::uint32_t>(run.S), n = static_cast<std::uint32_t>(rows.count);
    kv = static_cast<int>(unit / S), split = static_cast<int>(unit % S);
    begin = static_cast<int>(n * split / S);
    count = static_cast<int>(n * (split + 1) / S) - begin;
  }
};

// Rows of a team: gate m is -1 where the query does not see the row.
template <class T>
struct FewRows {
  Raw<T> key[kTwo], value[kTwo];
  float m[kTwo];
};

// Each of the lanes of a team, and each team of a warp.
template <class F>
__device__ inline void in_team(int L, F&& f) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1)
    if (offset < L) f(offset);
}
template <class F>
__device__ inline void between_teams(int L, F&& f) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1)
    if (offset >= L) f(offset);
}

template <class T>
struct HeadCarry {
  float top = kNoLogit, sum = 0, out[kPack<T>] = {};

  // `L` lanes share a row; q: the lane's features of the query.
  __device__ void add(const FewRows<T>& rows, const float (&q)[kPack<T>], GateMode gate, int L) {
    float logit[kTwo], high = top;
#pragma unroll
    for (int u = 0; u < kTwo; ++u) {
      logit[u] = 0;
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) logit[u] = fmaf(q[e], rows.key[u].get(e), logit[u]);
    }
    in_team(L, [&](int offset) {
#pragma unroll
      for (int u = 0; u < kTwo; ++u) logit[u] += __shfl_xor_sync(0xffffffffu, logit[u], offset);
    });
#pragma unroll
    for (int u = 0; u < kTwo; ++u) {
      if (gate == GateMode::kv) logit[u] *= rows.m[u];
      if (rows.m[u] < 0) logit[u] = kNoLogit;
      high = fmaxf(high, logit[u]);
    }
    scale(high);
#pragma unroll
    for (int u = 0; u < kTwo; ++u) {
      float p = rows.m[u] < 0 ? 0.f : power_of_two(logit[u] - high);
      if (gate == GateMode::prob) p *= rows.m[u];
      sum += p;
      if (gate == GateMode::kv || gate == GateMode::value) p *= rows.m[u];
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) out[e] = fmaf(p, rows.value[u].get(e), out[e]);
    }
  }
  // The teams of a warp in one: their sums are about one maximum, and a butterfly adds them.
  __device__ void join(int L) {
    float high = top;
    between_teams(L, [&](int offset) { high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, offset)); });
    scale(high);
    between_teams(L, [&](int offset) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) out[e] += __shfl_xor_sync(0xffffffffu, out[e], offset);
    });
  }

 private:
  __device__ void scale(float high) {
    const float shrink = power_of_two(top - high);
    top = high, sum *= shrink;
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) out[e] *= shrink;
  }
};

// One block's part of one layer.
template <class T>
class TokenAttend {
 public:
  static constexpr int N = kPack<T>;

  __device__ TokenAttend(const TokenRunArgs& args, const AttendSpace<T>& space, std::int64_t position)
      : run_(args), space_(space), position_(position) {}

  // One thread: the block's rows, as they were before the token, to shared memory.
  __device__ static void copy_rows(const TokenRunArgs& run, const DecodeAttendArgs& a, std::int64_t position, T* keys,
                                   T* values, std::uint64_t* barrier) {
    const RunRows rows(a, position);
    const RunPart part(run, rows, blockIdx.x);
    const auto bytes = static_cast<std::uint32_t>(min(part.count, static_cast<int>(run.held)) * a.D * sizeof(T));
    const std::int64_t from = (part.kv * a.capacity + part.begin) * a.D;
    expect_bytes(barrier, 2 * bytes);
    copy_bytes(keys, static_cast<const T*>(a.keys_BKCD) + from, bytes, barrier);
    copy_bytes(values, static_cast<const T*>(a.values_BKCD) + from, bytes, barrier);
  }

  // Nothing of this layer is needed yet: what else was there before the token is on its way from here on.
  __device__ void prepare(const DecodeAttendArgs& a) {
    const int incoming = a.selection.k > 0 ? a.selection.incoming[a.Hs == 1 ? 0 : kv_of()] : -1;
    const RunRows rows(a, position_);
    const RunPart part(run_, rows, blockIdx.x);
    kv_ = part.kv, split_ = part.split, begin_ = part.begin, count_ = part.count, start_ = rows.start;
    held_ = min(count_, static_cast<int>(run_.held));
    const int tid = static_cast<int>(threadIdx.x), d = moved_feature();
    if (tid < held_) gate_ = rows.gate(begin_ + tid, seen(a));
    if (split_ == 0 && d < run_.D) {
      const std::int64_t at = row_of(a, start_) + d;
      old_key_ = static_cast<const T*>(a.keys_BKCD)[at], old_value_ = static_cast<const T*>(a.values_BKCD)[at];
    }
    incoming_ = incoming >= 0 ? rows.kept + incoming : -1;
    if (split_ == 0 && d == 0) gate_of_moved_ = incoming >= 0 ? seen(a)[incoming] : -1.f;
  }

  // barrier, parity: of the rows. All threads are through with the rows when it returns.
  __device__ void finish(const DecodeAttendArgs& a, const Word* qkv, Word* parts, std::uint32_t tag,
                         std::uint64_t* barrier, std::uint32_t parity) const {
    const int group = run_.group, D = static_cast<int>(run_.D), tid = static_cast<int>(threadIdx.x), L = lanes();
    read_token(qkv, tag, group);
    if (tid < held_) space_.gates[tid] = begin_ + tid == incoming_ ? -1.f : gate_;
    await_bytes(barrier, parity);
    __syncthreads();
#pragma unroll 1
    for (int i = tid; i < group * D; i += kRunThreads)
      space_.query[i] = turned(space_.raw + i / D * D, i % D) * (a.scale * kLog2E);
    if (split_ == 0) move_rows(a, group);
    __syncthreads();
    const int d = (tid & (L - 1)) * N, teams = kRunThreads >> run_.lanes_log2,
              all = held_ + (split_ == 0 ? kCarried : 0), team = tid >> run_.lanes_log2,
              warps_first = (tid & ~31) >> run_.lanes_log2;
#pragma unroll 1
    for (int g = 0; g < group; ++g) {
      float q[N] = {};
      if (d < D) {
        const Pack<float, N> mine = load_pack<N>(space_.query + g * D + d);
#pragma unroll
        for (int e = 0; e < N; ++e) q[e] = mine.at[e];
      }
      HeadCarry<T> carry;
      FewRows<T> rows;
#pragma unroll 1
      for (int first = 0; first + warps_first < all; first += kTwo * teams) {
#pragma unroll
        for (int u = 0; u < kTwo; ++u) {
          // Rows that the query does not see are read all the same: no read waits for its gate then.
          const int r = first + u * teams + team, place = r < held_ ? r : r < all ? carried(r - held_) : 0;
          rows.m[u] = r < all ? space_.gates[place] : -1.f;
          rows.key[u] = d < D ? Raw<T>::at(space_.keys + place * D + d) : Raw<T>::none();
          rows.value[u] = d < D ? Raw<T>::at(space_.values + place * D + d) : Raw<T>::none();
          if (rows.m[u] < 0) rows.value[u] = Raw<T>::none();  // 0 times whatever was there
        }
        carry.add(rows, q, a.gate, L);
      }
#pragma unroll 1
      for (int first = held_; first + warps_first < count_; first += kTwo * teams) {
#pragma unroll
        for (int u = 0; u < kTwo; ++u) row(a, first + u * teams + team, d, rows, u);
        carry.add(rows, q, a.gate, L);
      }
      carry.join(L);
      write_part(carry, parts + ((kv_ * group + g) * static_cast<int>(run_.S) + split_) * (D + 2), tag);
      if (g + 1 < group) __syncthreads();  // the space serves the next head
    }
  }

 private:
  __device__ int lanes() const { return 1 << run_.lanes_log2; }
  __device__ int kv_of() const { return static_cast<int>(blockIdx.x / static_cast<std::uint32_t>(run_.S)); }
  __device__ int carried(int which) const { return static_cast<int>(run_.held) + which; }
  __device__ static int moved_feature() { return kRunThreads - 1 - static_cast<int>(threadIdx.x); }
  __device__ const float* seen(const DecodeAttendArgs& a) const {
    return a.selection.seen + (a.Hs == 1 ? 0 : kv_) * a.selection.k;
  }
  __device__ std::int64_t row_of(const DecodeAttendArgs& a, int row) const { return (kv_ * a.capacity + row) * a.D; }

  // Row r of the block's part, which shared memory has no room for.
  __device__ void row(const DecodeAttendArgs& a, int r, int d, FewRows<T>& out, int u) const {
    out.m[u] = -1;
    out.key[u] = out.value[u] = Raw<T>::none();
    if (r >= count_) return;
    out.m[u] = begin_ + r == incoming_ ? -1.f : RunRows(a, position_).gate(begin_ + r, seen(a));
    if (d >= run_.D || out.m[u] < 0) return;
    const std::int64_t at = row_of(a, begin_ + r) + d;
    out.key[u] = Raw<T>::at(static_cast<const T*>(a.keys_BKCD) + at);
    out.value[u] = Raw<T>::at(static_cast<const T*>(a.values_BKCD) + at);
  }

  // q of the group, k and v of the new token as they are.
  __device__ void read_token(const Word* qkv, std::uint32_t tag, int group) const {
    constexpr int kEach = 2 * kPerWord<T>;
    const int D = static_cast<int>(run_.D), H = static_cast<int>(run_.H), Hkv = static_cast<int>(run_.Hkv),
              all = (group + (split_ == 0 ? 2 : 0)) * D;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x) * kEach; i < all; i += kRunThreads * kEach) {
      const int head = i / D, row = head < group ? kv_ * group + head : H + (head - group) * Hkv + kv_;
      const Word* const places[1] = {qkv + (row * D + i % D) / kPerWord<T>};
      std::uint32_t got[1][2];
      await<1>(places, tag, got);
      memcpy(space_.raw + i, got[0], 8);
    }
  }

  __device__ float turned(const T* row, int d) const {
    const int R = static_cast<int>(run_.R);
    const float x = to_compute(row[d]);
    if (d >= 2 * R) return x;
    const int r = d < R ? d : d - R;
    const float other = to_compute(row[d < R ? d + R : r]), c = space_.turn_cos[r], s = space_.turn_sin[r];
    return d < R ? x * c - other * s : x * c + other * s;
  }

  // The new row, and the one that leaves the window where it goes to a slot: into the cache and where no copy comes.
  __device__ void move_rows(const DecodeAttendArgs& a, int group) const {
    const int D = static_cast<int>(run_.D), d = moved_feature();
    if (d >= D) return;
    T *keys = static_cast<T*>(a.keys_BKCD), *values = static_cast<T*>(a.values_BKCD);
    const T *key = space_.raw + group * D, value = key[D + d];
    const T stored = d < 2 * run_.R ? to_element<T>(turned(key, d)) : key[d];
    const int place = carried(0) * D + d;
    space_.keys[place] = stored, space_.values[place] = value;
    space_.keys[place + D] = old_key_, space_.values[place + D] = old_value_;
    if (d == 0) space_.gates[carried(0)] = 1, space_.gates[carried(1)] = gate_of_moved_;
    if (incoming_ >= 0) {
      const std::int64_t slot = row_of(a, incoming_) + d;
      keys[slot] = old_key_, values[slot] = old_value_;
    }
    const std::int64_t at = row_of(a, start_) + d;
    keys[at] = stored, values[at] = value;
  }

  // The warps joined in their order; sums of D features, maximum and sum of the weights.
  __device__ void write_part(const HeadCarry<T>& carry, Word* part, std::uint32_t tag) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
              D = static_cast<int>(run_.D), own = lane * N, d = static_cast<int>(threadIdx.x);
    if (lane == 0) space_.tops[warp] = carry.top, space_.sums[warp] = carry.sum;
    if (lane < lanes() && own < D) {
      Pack<float, N> out;
#pragma unroll
      for (int e = 0; e < N; ++e) out.at[e] = carry.out[e];
      store_pack<N>(space_.outs + warp * D + own, out);
    }
    __syncthreads();
    if (d >= D) return;
    constexpr int kFour = 4;
    float weight[kRunWarps], high = kNoLogit, total = 0, out = 0;
#pragma unroll
    for (int w = 0; w < kRunWarps; w += kFour) {
      const Pack<float, kFour> tops = load_pack<kFour>(space_.tops + w);
#pragma unroll
      for (int k = 0; k < kFour; ++k) weight[w + k] = tops.at[k], high = fmaxf(high, tops.at[k]);
    }
#pragma unroll
    for (int w = 0; w < kRunWarps; w += kFour) {
      const Pack<float, kFour> sums = load_pack<kFour>(space_.sums + w);
#pragma unroll
      for (int k = 0; k < kFour; ++k) {
        const float share = power_of_two(weight[w + k] - high);
        total = fmaf(sums.at[k], share, total);
        out = fmaf(space_.outs[(w + k) * D + d], share, out);
      }
    }
    send(part + d, __float_as_uint(out), tag);
    if (d == 0) send(part + D, __float_as_uint(high), tag), send(part + D + 1, __float_as_uint(total), tag);
  }

  const TokenRunArgs& run_;
  const AttendSpace<T>& space_;
  std::int64_t position_;
  int kv_, split_, begin_, count_, held_, start_;
  int incoming_;  // the row of the slot that the token takes, -1: none
  float gate_, gate_of_moved_;
  T old_key_, old_value_;
};

}  // namespace sieve::cuda
