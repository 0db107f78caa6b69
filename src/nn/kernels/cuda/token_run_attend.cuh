// The attention of a token that runs in one launch: a block a (key-value head, split of its rows), a team of L lanes a
// row. Keys and values that were there before the token are loaded before the query is awaited.
#pragma once

#include "attention/kernels/cuda/decode_step.cuh"
#include "nn/kernels/cuda/token_words.cuh"
#include "nn/kernels/token_run.h"
#include "tensor/kernels/cuda/dependent.cuh"

namespace sieve::cuda {

constexpr int kRunThreads = 512;
constexpr int kRunWarps = kRunThreads / 32;
constexpr int kHeld = 4;                // rows of a team in registers
constexpr float kNoLogit = -1e30f;      // below every logit
constexpr std::int64_t kMaxSplits = 8;  // of a head's rows

// The shared memory of the attention: raw q, k, v; moved rows; carries of the warps.
template <class T>
struct AttendSpace {
  T* raw;                            // (group + 2, D)
  T* moved;                          // (2, 2, D): key and value of the new row, then of the one that leaves the window
  float *tops, *sums;                // (warps)
  float* outs;                       // (warps, D)
  const float *turn_cos, *turn_sin;  // (R)
};

// Rows of a team: gate m is 1 where there is none, -1 where the query does not see the row.
template <class T, int n>
struct HeldRows {
  Raw<T> key[n], value[n];
  float m[n];
};

template <class T>
struct HeadCarry {
  float top = kNoLogit, sum = 0, out[kPack<T>] = {};

  __device__ void join_lanes(int offset) {
    const float other = __shfl_xor_sync(0xffffffffu, top, offset), high = fmaxf(top, other);
    const float mine = expf(top - high), theirs = expf(other - high);
    sum = sum * mine + __shfl_xor_sync(0xffffffffu, sum, offset) * theirs;
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) out[e] = out[e] * mine + __shfl_xor_sync(0xffffffffu, out[e], offset) * theirs;
    top = high;
  }

  // `L` lanes share a row; q: the lane's features of the query.
  template <int n>
  __device__ void add(const HeldRows<T, n>& rows, const float (&q)[kPack<T>], GateMode gate, int L) {
    float logit[n], high = top;
#pragma unroll
    for (int u = 0; u < n; ++u) {
      logit[u] = 0;
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) logit[u] = fmaf(q[e], rows.key[u].get(e), logit[u]);
    }
    for (int offset = L / 2; offset > 0; offset >>= 1) {
#pragma unroll
      for (int u = 0; u < n; ++u) logit[u] += __shfl_xor_sync(0xffffffffu, logit[u], offset);
    }
#pragma unroll
    for (int u = 0; u < n; ++u) {
      if (gate == GateMode::kv) logit[u] *= rows.m[u];
      if (rows.m[u] < 0) logit[u] = kNoLogit;
      high = fmaxf(high, logit[u]);
    }
    const float shrink = expf(top - high);
    top = high;
    sum *= shrink;
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) out[e] *= shrink;
#pragma unroll
    for (int u = 0; u < n; ++u) {
      float p = rows.m[u] < 0 ? 0.f : expf(logit[u] - high);
      if (gate == GateMode::prob) p *= rows.m[u];
      sum += p;
      if (gate == GateMode::kv || gate == GateMode::value) p *= rows.m[u];
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) out[e] = fmaf(p, rows.value[u].get(e), out[e]);
    }
  }
};

// One block's part of one layer.
template <class T>
class TokenAttend {
 public:
  static constexpr int N = kPack<T>;

  __device__ explicit TokenAttend(const TokenRunArgs& args) : run_(args) {}

  // Nothing of this layer is needed yet: what was in the cache before the token is on its way from here on.
  __device__ void prepare(const DecodeAttendArgs& layer, std::int64_t unit) {
    const DecodeRows rows(layer);
    kv_ = static_cast<int>(unit / run_.S), split_ = static_cast<int>(unit % run_.S);
    lanes_ = 1;
    while (lanes_ * N < layer.D) lanes_ *= 2;
    d_ = static_cast<int>(threadIdx.x) % lanes_ * N;
    incoming_ = -1;
    if (layer.selection.k > 0) incoming_ = layer.selection.incoming[layer.Hs == 1 ? 0 : kv_];
    begin_ = static_cast<int>(rows.count() * split_ / run_.S);
    end_ = static_cast<int>(rows.count() * (split_ + 1) / run_.S);
    hold(layer, rows, begin_, first_);
    if (split_ == 0 && threadIdx.x < layer.D) {
      const std::int64_t at = (kv_ * layer.capacity + rows.start) * layer.D + threadIdx.x;
      old_key_ = static_cast<const T*>(layer.keys_BKCD)[at], old_value_ = static_cast<const T*>(layer.values_BKCD)[at];
    }
  }

  __device__ void finish(const DecodeAttendArgs& a, const Word* qkv, Word* parts, std::uint32_t tag,
                         const AttendSpace<T>& space) const {
    const int group = static_cast<int>(a.H / a.Hkv), D = static_cast<int>(a.D);
    read_token(a, qkv, tag, group, space.raw);
    __syncthreads();
    if (split_ == 0) {
      move_rows(a, space, group);
      __syncthreads();
    }
    const int team = static_cast<int>(threadIdx.x) / lanes_, teams = kRunThreads / lanes_;
#pragma unroll 1
    for (int g = 0; g < group; ++g) {
      float q[N];
#pragma unroll
      for (int e = 0; e < N; ++e) q[e] = d_ < D ? turned(space, space.raw + g * D, d_ + e) * a.scale : 0.f;
      HeadCarry<T> carry;
      carry.add(first_, q, a.gate, lanes_);
#pragma unroll 1
      for (std::int64_t at = begin_ + kHeld * teams; at < end_; at += teams) {
        HeldRows<T, 1> more;
        hold(a, DecodeRows(a), at, more);
        carry.add(more, q, a.gate, lanes_);
      }
      if (split_ == 0) carry.add(carried(a, space, team), q, a.gate, lanes_);
      for (int offset = lanes_; offset < 32; offset *= 2) carry.join_lanes(offset);
      write_part(carry, D, parts + ((kv_ * group + g) * run_.S + split_) * (D + 2), tag, space);
    }
  }

 private:
  __device__ const float* seen(const DecodeAttendArgs& a) const {
    return a.selection.seen + (a.Hs == 1 ? 0 : kv_) * a.selection.k;
  }
  // Rows at + team, at + team + teams, ... of the list.
  template <int n>
  __device__ void hold(const DecodeAttendArgs& a, const DecodeRows& rows, std::int64_t at, HeldRows<T, n>& held) const {
    const T *keys = static_cast<const T*>(a.keys_BKCD) + kv_ * a.capacity * a.D,
            *values = static_cast<const T*>(a.values_BKCD) + kv_ * a.capacity * a.D;
    const int team = static_cast<int>(threadIdx.x) / lanes_, teams = kRunThreads / lanes_;
#pragma unroll
    for (int u = 0; u < n; ++u) {
      const std::int64_t r = at + u * teams + team, slot = r - rows.window - rows.sinks;
      held.m[u] = -1;
      held.key[u] = held.value[u] = Raw<T>::none();
      if (r >= end_ || (slot >= 0 && slot == incoming_)) continue;  // split 0 has that one
      held.m[u] = slot >= 0 ? seen(a)[slot] : 1.f;
      if (d_ >= a.D) continue;
      const std::int64_t place = rows.place(r) * a.D + d_;
      held.key[u] = Raw<T>::at(keys + place), held.value[u] = Raw<T>::at(values + place);
    }
  }

  // q of the group, k and v of the new token as they are.
  __device__ void read_token(const DecodeAttendArgs& a, const Word* qkv, std::uint32_t tag, int group, T* raw) const {
    constexpr int kEach = 2 * kPerWord<T>;
    const int D = static_cast<int>(a.D), all = (group + (split_ == 0 ? 2 : 0)) * D;
    for (int i = static_cast<int>(threadIdx.x) * kEach; i < all; i += kRunThreads * kEach) {
      const int head = i / D;
      const std::int64_t from = head < group    ? (kv_ * group + head) * D
                                : head == group ? (a.H + kv_) * D
                                                : (a.H + a.Hkv + kv_) * D;
      const Word* const places[1] = {qkv + (from + i % D) / kPerWord<T>};
      std::uint32_t got[1][2];
      await<1>(places, tag, got);
      memcpy(raw + i, got[0], 8);
    }
  }

  __device__ float turned(const AttendSpace<T>& space, const T* row, int d) const {
    const int R = static_cast<int>(run_.R);
    const float x = to_compute(row[d]);
    if (d >= 2 * R) return x;
    const int r = d < R ? d : d - R;
    const float other = to_compute(row[d < R ? d + R : r]), c = space.turn_cos[r], s = space.turn_sin[r];
    return d < R ? x * c - other * s : x * c + other * s;
  }

  __device__ void move_rows(const DecodeAttendArgs& a, const AttendSpace<T>& space, int group) const {
    T *keys = static_cast<T*>(a.keys_BKCD) + kv_ * a.capacity * a.D,
      *values = static_cast<T*>(a.values_BKCD) + kv_ * a.capacity * a.D;
    const DecodeRows rows(a);
    const int D = static_cast<int>(a.D), d = static_cast<int>(threadIdx.x);
    if (d >= D) return;
    const T *key = space.raw + group * D, value = key[D + d];
    const T stored = d < 2 * run_.R ? to_element<T>(turned(space, key, d)) : key[d];
    space.moved[d] = stored, space.moved[D + d] = value;
    space.moved[2 * D + d] = old_key_, space.moved[3 * D + d] = old_value_;
    if (incoming_ >= 0) {
      const std::int64_t slot = (rows.ring + incoming_) * a.D + d;
      keys[slot] = old_key_, values[slot] = old_value_;
    }
    keys[rows.start * a.D + d] = stored, values[rows.start * a.D + d] = value;
  }

  // What this step moves: the first team has the new row, the second the one that leaves the window for a slot.
  __device__ HeldRows<T, 1> carried(const DecodeAttendArgs& a, const AttendSpace<T>& space, int team) const {
    HeldRows<T, 1> held;
    held.m[0] = -1;
    held.key[0] = held.value[0] = Raw<T>::none();
    if (team == 0) held.m[0] = 1;
    else if (team == 1 && incoming_ >= 0) held.m[0] = seen(a)[incoming_];
    if (team > 1 || d_ >= a.D) return held;
    held.key[0] = Raw<T>::at(space.moved + 2 * team * a.D + d_);
    held.value[0] = Raw<T>::at(space.moved + (2 * team + 1) * a.D + d_);
    return held;
  }

  // The warps joined in their order; sums of D features, maximum and sum of the weights.
  __device__ void write_part(const HeadCarry<T>& carry, int D, Word* part, std::uint32_t tag,
                             const AttendSpace<T>& space) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    if (lane == 0) space.tops[warp] = carry.top, space.sums[warp] = carry.sum;
    if (lane < lanes_ && d_ < D) {
#pragma unroll
      for (int e = 0; e < N; ++e) space.outs[warp * D + d_ + e] = carry.out[e];
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < D) {
      const int d = static_cast<int>(threadIdx.x);
      float high = space.tops[0], total = 0, out = 0;
#pragma unroll
      for (int w = 1; w < kRunWarps; ++w) high = fmaxf(high, space.tops[w]);
#pragma unroll
      for (int w = 0; w < kRunWarps; ++w) {
        const float weight = expf(space.tops[w] - high);
        total = fmaf(space.sums[w], weight, total);
        out = fmaf(space.outs[w * D + d], weight, out);
      }
      send(part + d, __float_as_uint(out), tag);
      if (d == 0) send(part + D, __float_as_uint(high), tag), send(part + D + 1, __float_as_uint(total), tag);
    }
    __syncthreads();  // the space serves the next head
  }

  const TokenRunArgs& run_;
  int begin_, end_, kv_, split_, lanes_, d_, incoming_;
  T old_key_, old_value_;
  HeldRows<T, kHeld> first_;
};

// The rows that block `unit` will want, into the second cache.
template <class T>
__device__ void prefetch_rows(const TokenRunArgs& run, const DecodeAttendArgs& a, std::int64_t unit) {
  const DecodeRows rows(a);
  const std::int64_t kv = unit / run.S, split = unit % run.S, n = rows.count(), begin = n * split / run.S,
                     end = min(n * (split + 1) / run.S, begin + kRunThreads);
  const std::int64_t bytes = a.D * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t r = begin + threadIdx.x; r < end; r += kRunThreads) {
    const std::int64_t at = (kv * a.capacity + rows.place(r)) * bytes;
    for (std::int64_t line = 0; line < bytes; line += 128) {
      prefetch(static_cast<const char*>(a.keys_BKCD) + at + line);
      prefetch(static_cast<const char*>(a.values_BKCD) + at + line);
    }
  }
}

}  // namespace sieve::cuda
