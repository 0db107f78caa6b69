// One recurrence behind all passes of attention by a recurrence (kernels/linear.h). A block takes a chunk of 64
// positions of one head and a range of "own" indices; the state is X (own, inner), every thread a part of it:
//
//   X[o][i] += less_t X[o][i] + b_t[o] a_t[i],      out_t[o] = sum_i X[o][i] c_t[i]
//
//   pass               direction   own      inner    a    b    c
//   states, outputs    forward     columns  D        k    v    q
//   dq                 forward     D        columns  v    k    dr
//   gradients of S, dv backward    columns  D        q    dr   k
//   dk                 backward    D        columns  dr   q    v
//
// where dr is the gradient of r = S^T q. Where keys enter late, an event is one of the two lines alone: a key that
// enters, or a query; queries of a chunk stand behind the keys that enter at them. In every pass one kind adds and the
// other reads, which is all that changes. Backward the decay comes last, so that both directions carry their state from
// chunk to chunk in the same way: X_next = decays of the chunk times X + what the chunk adds from 0. A chunk's part is
// found first, for all chunks at once; then the carries; then the chunks run again from what they carry. Sums have one
// fixed order.
#pragma once

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/linear.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda::linear {

// An event: its row, and whether it is a query, and whether a document starts with it.
using Event = std::uint32_t;
inline constexpr std::int64_t kMostEventRows = std::int64_t{1} << 30;
SIEVE_HD constexpr Event event_of(std::int64_t row, bool is_query, bool restarts) {
  return static_cast<Event>(row) << 2 | (restarts ? 2u : 0u) | (is_query ? 1u : 0u);
}

// What happens in a row of positions, in order. Null: query and key of a position at once.
struct Events {
  const Event* all = nullptr;                 // (B, heads, 2 T), used up to first[T] + T
  const std::int32_t* entry_first = nullptr;  // (B, heads, T + 1): LinearArgs
  std::int64_t heads = 1;                     // lists
};

enum class RowKind { plain, feature, scaled, value_and_one, decay };

// A vector a position and head: element x of position t in row b * T + t.
struct Rows {
  const void* data = nullptr;
  std::int64_t stride = 0, first = 0, head_stride = 0;
  int group = 1;  // heads that share a vector
  int size = 0;   // elements; beyond them 0 (value_and_one: 1 behind the last)
  RowKind kind = RowKind::plain;
  float factor = 1;
  bool is_bf16 = false;
};

__device__ inline float element(const Rows& r, std::int64_t row, std::int64_t head, int x) {
  if (x >= r.size) return r.kind == RowKind::value_and_one && x == r.size ? 1.f : 0.f;
  const std::int64_t at = row * r.stride + r.first + head / r.group * r.head_stride + x;
  const float y =
      r.is_bf16 ? static_cast<float>(static_cast<const bf16*>(r.data)[at]) : static_cast<const float*>(r.data)[at];
  switch (r.kind) {
    case RowKind::feature: return elu_feature(y);
    case RowKind::scaled: return y * r.factor;
    case RowKind::decay: return decay_less_one(y, r.factor);
    default: return y;
  }
}

struct Walk {
  Rows a, b, c, less;
  const std::int32_t* starts_BT = nullptr;
  std::int64_t B = 0, T = 0, heads = 0, chunks = 0;
  int own = 0, inner = 0, own_blocks = 1;
  // (B, heads / state_group, chunks, D, columns): where the chunks begin; without an output: what they add.
  float* states = nullptr;
  std::int64_t state_group = 1, state_size = 0, own_stride = 0, inner_stride = 0;
  void* out = nullptr;  // (B, T, heads, out_size)
  int out_size = 0;
  bool out_is_bf16 = false;
  Events events;
};

enum class Decay { none, inner, own };
inline constexpr int kWalkThreads = 64, kStage = 16;  // positions in shared memory at a time

// Shared memory: kStage rows of a, c (inner, padded), b (own, padded), less (inner or own), then the restarts, or
// the events of two stages.
template <int R, int M>
constexpr std::size_t walk_shared_bytes(bool out, Decay decay, bool events) {
  const int inner = 16 * M, own = 16 * R;
  const int floats = inner * (out ? 2 : 1) + own + (decay == Decay::inner ? inner : decay == Decay::own ? own : 0);
  return static_cast<std::size_t>(kStage) *
         (static_cast<std::size_t>(floats) * sizeof(float) + (events ? 2 : 1) * sizeof(int));
}

template <int kWidth>
__device__ inline void stage(const Rows& rows, float* to, std::int64_t row, std::int64_t head, int first, int count) {
  for (int x = static_cast<int>(threadIdx.x); x < kStage * kWidth; x += kWalkThreads) {
    const int step = x / kWidth;
    to[x] = step < count ? element(rows, row + step, head, first + x % kWidth) : 0.f;
  }
}

// The rows of those events that are queries, or of those that are keys; the others' places stay as they are.
template <int kWidth>
__device__ inline void stage_events(const Rows& rows, float* to, std::int64_t row, std::int64_t head, int first,
                                    int count, const Event* events, bool queries) {
  for (int x = static_cast<int>(threadIdx.x); x < count * kWidth; x += kWalkThreads) {
    const Event event = events[x / kWidth];
    if (((event & 1u) != 0) == queries) to[x] = element(rows, row + (event >> 2), head, first + x % kWidth);
  }
}

// A block's chunk. R own indices a thread, 16 apart; M packs of 4 inner indices, 16 apart, the other twelve with the
// three threads beside it.
template <int R, int M, bool kBackward, Decay kDecay, bool kOut, bool kEvents>
class Chunk {
 public:
  __device__ explicit Chunk(const Walk& walk) : w(walk) {
    const std::int64_t block = blockIdx.x, bh = block / w.own_blocks / w.chunks;
    const std::int64_t chunk = block / w.own_blocks % w.chunks;
    head_ = bh % w.heads, row_ = bh / w.heads;
    own_first_ = static_cast<int>(block % w.own_blocks) * kOwn;
    const std::int64_t state_head = row_ * (w.heads / w.state_group) + head_ / w.state_group;
    state_ = w.states + (state_head * w.chunks + chunk) * w.state_size;
    begin_ = chunk * kLinearChunk;
    length_ = static_cast<int>(begin_ + kLinearChunk < w.T ? kLinearChunk : w.T - begin_);
    a_ = reinterpret_cast<float*>(dynamic_shared());
    c_ = a_ + kStage * kInner;  // kOut
    b_ = a_ + kStage * kInner * (kOut ? 2 : 1);
    less_ = b_ + kStage * kOwn;  // where there are decays
    restarts_ = reinterpret_cast<int*>(less_ + (kDecay == Decay::none ? 0 : kStage * kLess));
    if constexpr (kEvents) {
      const std::int64_t list = row_ * w.events.heads + head_ / (w.heads / w.events.heads), end = begin_ + length_;
      const std::int32_t* entry_first = w.events.entry_first + list * (w.T + 1);
      const std::int64_t first_event = entry_first[begin_] + begin_;
      events_ = w.events.all + list * 2 * w.T + first_event;
      length_ = static_cast<int>(entry_first[end] + end - first_event);
    }
  }

  __device__ void run() {
    for_each_element([&](float& x, bool real, std::int64_t at) { x = kOut && real ? state_[at] : 0.f; });
    const int stages = (length_ + kStage - 1) / kStage;
    if constexpr (kEvents) load_events(0, stages);
    for (int n = 0; n < stages; ++n) {
      const int first = (kBackward ? stages - 1 - n : n) * kStage, count = min(kStage, length_ - first);
      __syncthreads();  // the stage before is read
      if constexpr (kEvents) {
        load_events(n + 1, stages);
        fetch_events(staged_events(n), count);
      } else {
        fetch(first, count);
      }
      __syncthreads();
      for (int k = 0; k < count; ++k) {
        const int s = kBackward ? count - 1 - k : k;
        if constexpr (kEvents) take(staged_events(n)[s], s);
        else step(first, s);
      }
    }
    if constexpr (!kOut) {
      for_each_element([&](float& x, bool real, std::int64_t at) {
        if (real) state_[at] = x;
      });
    }
  }

 private:
  static constexpr int kInner = 16 * M, kOwn = 16 * R, kLess = kDecay == Decay::inner ? kInner : kOwn;

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 4; }
  __device__ static int place() { return static_cast<int>(threadIdx.x) / 4; }

  // f(element, whether it exists, where it lies in the state)
  template <class F>
  __device__ void for_each_element(F f) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int x = 0; x < 4 * M; ++x) {
        const int o = own_first_ + place() + 16 * r, i = x / 4 * 16 + 4 * lane() + x % 4;
        f(X_[r][x], o < w.own && i < w.inner, o * w.own_stride + i * w.inner_stride);
      }
    }
  }

  __device__ void fetch(int first, int count) const {
    const std::int64_t at = row_ * w.T + begin_ + first;
    stage<kInner>(w.a, a_, at, head_, 0, count);
    if constexpr (kOut) stage<kInner>(w.c, c_, at, head_, 0, count);
    stage<kOwn>(w.b, b_, at, head_, own_first_, count);
    if constexpr (kDecay != Decay::none)
      stage<kLess>(w.less, less_, at, head_, kDecay == Decay::own ? own_first_ : 0, count);
    const int step = static_cast<int>(threadIdx.x);
    if (step < count) restarts_[step] = w.starts_BT != nullptr && w.starts_BT[at + step] == begin_ + first + step;
  }

  __device__ Event* staged_events(int stage) const { return reinterpret_cast<Event*>(restarts_) + stage % 2 * kStage; }

  // Which events the walk's stage n takes: they are known before their rows are fetched.
  __device__ void load_events(int n, int stages) const {
    const int s = static_cast<int>(threadIdx.x), at = (kBackward ? stages - 1 - n : n) * kStage + s;
    if (n < stages && s < kStage && at < length_) staged_events(n)[s] = events_[at];
  }

  __device__ void fetch_events(const Event* events, int count) const {
    const std::int64_t row = row_ * w.T;
    stage_events<kInner>(w.a, a_, row, head_, 0, count, events, kBackward);
    stage_events<kOwn>(w.b, b_, row, head_, own_first_, count, events, kBackward);
    if constexpr (kOut) stage_events<kInner>(w.c, c_, row, head_, 0, count, events, !kBackward);
  }

  // An event, in place s of its stage. All threads of the block take the same way.
  __device__ void take(Event event, int s) {
    const bool restart = (event & 2u) != 0;
    const auto clear = [](float& x, bool, std::int64_t) { x = 0.f; };
    if (!kBackward && restart) for_each_element(clear);
    if (((event & 1u) != 0) == kBackward) {
      add(s);
    } else if constexpr (kOut) {
      read(s, row_ * w.T + (event >> 2));
    }
    if (kBackward && restart) for_each_element(clear);
  }

  __device__ void add(int s) {
    float b[R];
#pragma unroll
    for (int r = 0; r < R; ++r) b[r] = b_[s * kOwn + place() + 16 * r];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float a[4];
      *reinterpret_cast<float4*>(a) = *reinterpret_cast<const float4*>(a_ + s * kInner + 16 * m + 4 * lane());
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) X_[r][4 * m + e] = fmaf(a[e], b[r], X_[r][4 * m + e]);
      }
    }
  }

  __device__ void read(int s, std::int64_t row) const {
    float sum[R] = {};
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float c[4];
      *reinterpret_cast<float4*>(c) = *reinterpret_cast<const float4*>(c_ + s * kInner + 16 * m + 4 * lane());
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[r] = fmaf(X_[r][4 * m + e], c[e], sum[r]);
      }
    }
    write(row, sum);
  }

  __device__ void step(int first, int s) {
    const bool restart = restarts_[s] != 0;
    const auto clear = [](float& x, bool, std::int64_t) { x = 0.f; };
    if (!kBackward && restart) for_each_element(clear);
    float b[R], sum[R], own_less[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      b[r] = b_[s * kOwn + place() + 16 * r], sum[r] = 0;
      own_less[r] = kDecay == Decay::own ? less_[s * kOwn + place() + 16 * r] : 0.f;
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const int i = s * kInner + 16 * m + 4 * lane();
      float a[4], c[4] = {}, less[4] = {};
      *reinterpret_cast<float4*>(a) = *reinterpret_cast<const float4*>(a_ + i);
      if constexpr (kOut) *reinterpret_cast<float4*>(c) = *reinterpret_cast<const float4*>(c_ + i);
      if constexpr (kDecay == Decay::inner)
        *reinterpret_cast<float4*>(less) = *reinterpret_cast<const float4*>(less_ + i);
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float& x = X_[r][4 * m + e];
          const float l = kDecay == Decay::inner ? less[e] : own_less[r];
          if (kDecay != Decay::none && !kBackward) x = fmaf(l, x, x);
          x = fmaf(a[e], b[r], x);
          if (kOut) sum[r] = fmaf(x, c[e], sum[r]);
          if (kDecay != Decay::none && kBackward) x = fmaf(l, x, x);
        }
      }
    }
    if (kBackward && restart) for_each_element(clear);
    if constexpr (kOut) write(row_ * w.T + begin_ + first + s, sum);
  }

  __device__ void write(std::int64_t row, float (&sum)[R]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
      const int o = own_first_ + place() + 16 * r;
      if (lane() != r % 4 || o >= w.own) continue;
      const std::int64_t to = (row * w.heads + head_) * w.out_size + o;
      if (w.out_is_bf16) static_cast<bf16*>(w.out)[to] = static_cast<bf16>(sum[r]);
      else static_cast<float*>(w.out)[to] = sum[r];
    }
  }

  const Walk& w;
  float X_[R][4 * M];
  float *a_, *b_, *c_, *less_, *state_;
  int* restarts_;        // kEvents: the events of two stages
  const Event* events_;  // kEvents: of the chunk
  std::int64_t head_, row_, begin_;
  int own_first_, length_;
};

template <int R, int M, bool kBackward, Decay kDecay, bool kOut, bool kEvents>
__global__ void __launch_bounds__(kWalkThreads) walk(const Walk w) {
  Chunk<R, M, kBackward, kDecay, kOut, kEvents>(w).run();
}

template <int R, int M, bool kBackward, Decay kDecay, bool kOut, bool kEvents>
void start_walk(const char* name, Walk w, const Stream& stream) {
  w.own_blocks = (w.own + 16 * R - 1) / (16 * R);
  start(name, walk<R, M, kBackward, kDecay, kOut, kEvents>, w.B * w.heads * w.chunks * w.own_blocks, kWalkThreads,
        walk_shared_bytes<R, M>(kOut, kDecay, kEvents), stream, w);
}

// Inner: D, at most 128.
template <bool kBackward, bool kOut>
void walk_columns(const char* name, const Walk& w, const Stream& stream) {
  const auto go = [&]<Decay kDecay, bool kEvents = false>() {
    if (w.inner > 64) start_walk<2, 8, kBackward, kDecay, kOut, kEvents>(name, w, stream);
    else if (w.own > 64 && w.own <= 80) start_walk<5, 4, kBackward, kDecay, kOut, kEvents>(name, w, stream);
    else start_walk<4, 4, kBackward, kDecay, kOut, kEvents>(name, w, stream);
  };
  if (w.less.data != nullptr) go.template operator()<Decay::inner>();
  else if (w.events.all != nullptr) go.template operator()<Decay::none, true>();
  else go.template operator()<Decay::none>();
}

// Inner: the columns, at most 256.
template <bool kBackward>
void walk_rows(const char* name, const Walk& w, const Stream& stream) {
  const auto go = [&]<Decay kDecay, bool kEvents = false>() {
    if (w.inner <= 64) start_walk<4, 4, kBackward, kDecay, true, kEvents>(name, w, stream);
    else if (w.inner <= 80) start_walk<4, 5, kBackward, kDecay, true, kEvents>(name, w, stream);
    else if (w.inner <= 128) start_walk<2, 8, kBackward, kDecay, true, kEvents>(name, w, stream);
    else if (w.inner <= 144) start_walk<2, 9, kBackward, kDecay, true, kEvents>(name, w, stream);
    else start_walk<1, 16, kBackward, kDecay, true, kEvents>(name, w, stream);
  };
  if (w.less.data != nullptr) go.template operator()<Decay::own>();
  else if (w.events.all != nullptr) go.template operator()<Decay::none, true>();
  else go.template operator()<Decay::none>();
}

}  // namespace sieve::cuda::linear
