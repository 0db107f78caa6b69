// The new token's attention: a block per (batch row, key-value head, split of its rows). Teams of lanes take a row
// each, a pack of 16 bytes a lane, for up to four query heads at once, and carry an online softmax; teams, warps and
// (by the reader of the parts) splits are joined in a fixed order. Split 0 also stores the new row, and moves the row
// that leaves the window to its slot before that: no other block looks at the three places.
#include "attention/kernels/cuda/decode_step.cuh"
#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/decode_step.h"
#include "tensor/kernels/cuda/dependent.cuh"
#include "tensor/kernels/cuda/pack.cuh"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kMaxHead = 256;
constexpr int kPrefetched = 512;    // rows of a block asked for before the wait
constexpr float kNothing = -1e30f;  // below every logit

// Keys and values that this step moves, as they are stored: 0 the new one, 1 the one that leaves the window.
template <class T>
struct Moved {
  T key[2][kMaxHead], value[2][kMaxHead];
};

// The query heads of a chunk: G of them from `first` on, scaled, turned where stored keys are.
template <class T>
__device__ void read_queries(const DecodeAttendArgs& a, std::int64_t b, std::int64_t first, int heads, int places,
                             float* q) {
  const std::int64_t R = a.distance_cos == nullptr ? a.rotary_dims / 2 : 0, F = (a.H + 2 * a.Hkv) * a.D;
  // From the last warps on: the first ones move rows meanwhile.
  for (std::int64_t x = kThreads - 1 - static_cast<int>(threadIdx.x); x < places * a.D; x += kThreads) {
    const std::int64_t g = x / a.D, d = x % a.D;
    float value = 0;
    if (g < heads) {
      const T* row = static_cast<const T*>(a.qkv_BF) + b * F + (first + g) * a.D;
      value = to_compute(row[d]) * a.scale;
      if (d < 2 * R) {
        const std::int64_t r = d < R ? d : d - R;
        const float other = to_compute(row[d < R ? d + R : r]) * a.scale, c = a.turn_cos[r], s = a.turn_sin[r];
        value = d < R ? value * c - other * s : value * c + other * s;
      }
    }
    q[x] = value;
  }
}

// By split 0, all threads: fills `moved`, then writes the rows.
template <class T>
__device__ void move_rows(const DecodeAttendArgs& a, const DecodeRows& rows, std::int64_t b, std::int64_t kv,
                          int incoming, Moved<T>& moved) {
  const std::int64_t R = a.distance_cos == nullptr ? a.rotary_dims / 2 : 0, F = (a.H + 2 * a.Hkv) * a.D;
  const T* token = static_cast<const T*>(a.qkv_BF) + b * F;
  T* keys = static_cast<T*>(a.keys_BKCD) + (b * a.Hkv + kv) * a.capacity * a.D;
  T* values = static_cast<T*>(a.values_BKCD) + (b * a.Hkv + kv) * a.capacity * a.D;
  const bool leaves = incoming >= 0 && !a.selection.at_once;
  for (std::int64_t d = threadIdx.x; d < a.D; d += kThreads) {
    // All that is read is on its way before the first of it is looked at, `incoming` too.
    const T* key = token + (a.H + kv) * a.D;
    const std::int64_t place = rows.start * a.D + d, r = d < R ? d : d - R;
    const T old_key = keys[place], old_value = values[place], value = token[(a.H + a.Hkv + kv) * a.D + d];
    T stored = key[d];
    if (d < 2 * R) {
      const float x = to_compute(stored), other = to_compute(key[d < R ? d + R : r]), c = a.turn_cos[r],
                  s = a.turn_sin[r];
      stored = to_element<T>(d < R ? x * c - other * s : x * c + other * s);
    }
    moved.key[0][d] = stored, moved.value[0][d] = value;
    moved.key[1][d] = old_key, moved.value[1][d] = old_value;
    if (incoming >= 0) {
      const std::int64_t slot = (rows.ring + incoming) * a.D + d;
      keys[slot] = leaves ? old_key : stored;
      values[slot] = leaves ? old_value : value;
    }
    keys[place] = stored, values[place] = value;
  }
}

// What a lane carries of G heads: E features each.
template <int G, int E>
struct Carry {
  float top[G], sum[G], out[G][E];

  __device__ void clear() {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      top[g] = kNothing, sum[g] = 0;
#pragma unroll
      for (int e = 0; e < E; ++e) out[g][e] = 0;
    }
  }
  __device__ void join_lanes(int offset) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const float other = __shfl_xor_sync(0xffffffffu, top[g], offset), high = fmaxf(top[g], other);
      const float mine = expf(top[g] - high), theirs = expf(other - high);
      sum[g] = sum[g] * mine + __shfl_xor_sync(0xffffffffu, sum[g], offset) * theirs;
#pragma unroll
      for (int e = 0; e < E; ++e)
        out[g][e] = out[g][e] * mine + __shfl_xor_sync(0xffffffffu, out[g][e], offset) * theirs;
      top[g] = high;
    }
  }
};

// A row that a team looks at.
struct Seen {
  bool real = false;   // there is something to read
  bool shown = false;  // and the query sees it
  bool gated = false;
  float m = 1;
  std::int64_t distance = 0;
};

// Turns: queries turn by the distance to each key.
template <class T, int L, int P, int G, bool Turns>
class Attend {
 public:
  static constexpr int N = kPack<T>, E = N * P, kTeams = kThreads / L;
  static constexpr int kRows = G * P > 1 ? 2 : 4;  // of a team at once, all on their way together
  using Rowful = Pack<T, N>[P];

  __device__ Attend(const DecodeAttendArgs& args, const DecodeRows& rows, std::int64_t b, std::int64_t kv, int incoming,
                    const Moved<T>& moved, const float* queries)
      : a(args), rows_(rows), moved_(moved), q_(queries), incoming_(incoming) {
    base_ = (b * a.Hkv + kv) * a.capacity;
    slots_ = (b * a.Hs + (a.Hs == 1 ? 0 : kv)) * a.selection.k;
    carry.clear();
#pragma unroll
    for (int x = 0; x < G * E; ++x) {
      const int d = (x % E / N * L + static_cast<int>(threadIdx.x) % L) * N + x % N;
      mine_[x] = !Turns && d < a.D ? q_[x / E * a.D + d] : 0.f;
    }
  }

  // Rows [begin, end) of the list; `own`: also what this step moves.
  __device__ void run(std::int64_t begin, std::int64_t end, bool own) {
    const int team = static_cast<int>(threadIdx.x) / L;
    const std::int64_t last = end + (own ? 2 : 0);
    // Whole warps stay together: shuffles want all lanes.
    for (std::int64_t at = begin; at < last; at += kTeams * kRows) {
      Seen seen[kRows];
      Rowful k[kRows], v[kRows];
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        const std::int64_t r = at + u * kTeams + team;
        const T *key = nullptr, *value = nullptr;
        seen[u] = r < end ? listed(r, key, value) : r < last ? carried(r - end, key, value) : Seen{};
#pragma unroll
        for (int x = 0; x < P; ++x) {
          const int d = (x * L + static_cast<int>(threadIdx.x) % L) * N;
          const bool reads = seen[u].real && d < a.D;
          k[u][x] = reads ? load_pack<N>(key + d) : Pack<T, N>{};
          v[u][x] = reads ? load_pack<N>(value + d) : Pack<T, N>{};
        }
      }
      add(seen, k, v);
    }
  }

  Carry<G, E> carry;

 private:
  __device__ Seen listed(std::int64_t r, const T*& key, const T*& value) const {
    Seen s;
    const std::int64_t slot = r - rows_.window - rows_.sinks, place = base_ + rows_.place(r);
    if (slot < 0) {
      s.shown = true;
      s.distance = r + 1;
    } else {
      if (slot == incoming_) return s;  // split 0 has it
      s.m = a.selection.seen[slots_ + slot];
      s.shown = s.m >= 0;
      s.gated = a.gate != GateMode::hard;
      if (Turns && s.shown) s.distance = min(rows_.position - a.selection.key[slots_ + slot], a.far_distance);
    }
    s.real = true;
    key = static_cast<const T*>(a.keys_BKCD) + place * a.D;
    value = static_cast<const T*>(a.values_BKCD) + place * a.D;
    return s;
  }
  __device__ Seen carried(std::int64_t which, const T*& key, const T*& value) const {
    Seen s;
    const bool leaves = incoming_ >= 0 && !a.selection.at_once;
    if (which == 1 && !leaves) return s;
    s.real = s.shown = true;
    if (which == 1) {
      s.m = a.selection.seen[slots_ + incoming_];
      s.gated = a.gate != GateMode::hard;
      s.distance = min(a.window, a.far_distance);
    }
    key = moved_.key[which], value = moved_.value[which];
    return s;
  }

  // Feature d of query g for a key at `distance`: (R_i q) . (R_j k) = (R_{i-j} q) . k where keys are not turned.
  __device__ float turned_query(int g, int d, std::int64_t distance) const {
    const float x = q_[g * a.D + d];
    const int R = static_cast<int>(a.rotary_dims) / 2;
    if (d >= 2 * R) return x;
    const int r = d < R ? d : d - R;
    const float c = a.distance_cos[distance * R + r], s = a.distance_sin[distance * R + r],
                other = q_[g * a.D + (d < R ? d + R : r)];
    return d < R ? x * c - other * s : x * c + other * s;
  }

  __device__ void add(const Seen (&seen)[kRows], const Rowful (&k)[kRows], const Rowful (&v)[kRows]) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      float logit[kRows], high = carry.top[g];
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        logit[u] = dot(g, seen[u].distance, k[u]);
        if (seen[u].gated && a.gate == GateMode::kv) logit[u] *= seen[u].m;
        if (!seen[u].shown) logit[u] = kNothing;
        high = fmaxf(high, logit[u]);
      }
      const float shrink = expf(carry.top[g] - high);
      carry.top[g] = high;
      carry.sum[g] *= shrink;
#pragma unroll
      for (int e = 0; e < E; ++e) carry.out[g][e] *= shrink;
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        float p = seen[u].shown ? expf(logit[u] - high) : 0.f;
        if (seen[u].gated && a.gate == GateMode::prob) p *= seen[u].m;
        carry.sum[g] += p;
        if (seen[u].gated && (a.gate == GateMode::kv || a.gate == GateMode::value)) p *= seen[u].m;
#pragma unroll
        for (int e = 0; e < E; ++e) carry.out[g][e] = fmaf(p, to_compute(v[u][e / N].at[e % N]), carry.out[g][e]);
      }
    }
  }

  __device__ float dot(int g, std::int64_t distance, const Rowful& k) const {
    float sum = 0;
#pragma unroll
    for (int x = 0; x < P; ++x) {
      const int d = (x * L + static_cast<int>(threadIdx.x) % L) * N;
      if (d >= a.D) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float q = Turns ? turned_query(g, d + i, distance) : mine_[g * E + x * N + i];
        sum = fmaf(q, to_compute(k[x].at[i]), sum);
      }
    }
#pragma unroll
    for (int offset = L / 2; offset > 0; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    return sum;
  }

  const DecodeAttendArgs& a;
  const DecodeRows& rows_;
  const Moved<T>& moved_;
  const float* q_;
  const int incoming_;
  std::int64_t base_, slots_;
  float mine_[G * E];  // the lane's features of the queries, where they do not turn
};

// The warps' carries of `heads` heads joined in their order, to the parts of (b, first + g).
template <int L, int P, int N, int G, class C>
__device__ void write_parts(const DecodeAttendArgs& a, const C& carry, std::int64_t b, std::int64_t first, int heads,
                            std::int64_t split, float* space) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float *tops = space, *sums = tops + kWarps * G, *outs = sums + kWarps * G;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    if (lane == 0) tops[warp * G + g] = carry.top[g], sums[warp * G + g] = carry.sum[g];
#pragma unroll
    for (int x = 0; x < P; ++x) {
      const int d = (x * L + lane) * N;
      if (lane >= L || d >= a.D) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) outs[(warp * G + g) * a.D + d + i] = carry.out[g][x * N + i];
    }
  }
  __syncthreads();
  for (std::int64_t x = threadIdx.x; x < heads * a.D; x += kThreads) {
    const std::int64_t g = x / a.D, d = x % a.D, to = (b * a.H + first + g) * a.parts.S + split;
    float high = tops[g], total = 0, out = 0;
    for (int w = 1; w < kWarps; ++w) high = fmaxf(high, tops[w * G + g]);
    for (int w = 0; w < kWarps; ++w) {
      const float weight = expf(tops[w * G + g] - high);
      total = fmaf(sums[w * G + g], weight, total);
      out = fmaf(outs[(w * G + g) * a.D + d], weight, out);
    }
    a.parts.sums[to * a.D + d] = out;
    if (d == 0) a.parts.stats[2 * to] = high, a.parts.stats[2 * to + 1] = total;
  }
  __syncthreads();  // the space serves the next heads
}

template <class T>
__device__ void prefetch_rows(const DecodeAttendArgs& a, const DecodeRows& rows, std::int64_t b, std::int64_t kv,
                              std::int64_t begin, std::int64_t end) {
  const std::int64_t bytes = a.D * static_cast<std::int64_t>(sizeof(T)), lines = (bytes + 127) / 128;
  const std::int64_t first = (b * a.Hkv + kv) * a.capacity;
  for (std::int64_t x = threadIdx.x; x < min(end - begin, std::int64_t{kPrefetched}) * lines; x += kThreads) {
    const std::int64_t at = (first + rows.place(begin + x / lines)) * bytes + x % lines * 128;
    prefetch(static_cast<const char*>(a.keys_BKCD) + at);
    prefetch(static_cast<const char*>(a.values_BKCD) + at);
  }
}

template <class T, int L, int P, int G, bool Turns>
__global__ void __launch_bounds__(kThreads, G == 1 && !Turns ? 2 : 1) attend(const DecodeAttendArgs a) {
  __shared__ Moved<T> moved;
  float* queries = reinterpret_cast<float*>(dynamic_shared());  // (G, D), then what joins the warps
  float* space = queries + G * a.D;
  let_next_start();
  const std::int64_t split = blockIdx.x % a.parts.S, kv = blockIdx.x / a.parts.S % a.Hkv,
                     b = blockIdx.x / a.parts.S / a.Hkv, group = a.H / a.Hkv;
  const DecodeRows rows(a);  // the position changes between tokens only
  const std::int64_t n = rows.count(), begin = n * split / a.parts.S, end = n * (split + 1) / a.parts.S;
  prefetch_rows<T>(a, rows, b, kv, begin, end);
  wait_for_earlier();
  int incoming = -1;
  if (a.selection.k > 0) incoming = a.selection.incoming[b * a.Hs + (a.Hs == 1 ? 0 : kv)];
  if (split == 0) move_rows<T>(a, rows, b, kv, incoming, moved);
  for (std::int64_t first = 0; first < group; first += G) {
    const int heads = static_cast<int>(min(group - first, std::int64_t{G}));
    read_queries<T>(a, b, kv * group + first, heads, G, queries);
    __syncthreads();
    Attend<T, L, P, G, Turns> work(a, rows, b, kv, incoming, moved, queries);
    work.run(begin, end, split == 0);
    for (int offset = L; offset < 32; offset *= 2) work.carry.join_lanes(offset);
    write_parts<L, P, kPack<T>, G>(a, work.carry, b, kv * group + first, heads, split, space);
  }
}

template <class T, int L, int P, int G, bool Turns>
void start_heads(const DecodeAttendArgs& a, const Stream& stream) {
  const auto floats = static_cast<std::size_t>(G * a.D + kWarps * G * (a.D + 2));
  const std::int64_t blocks = a.B * a.Hkv * a.parts.S;
  require(blocks < (std::int64_t{1} << 31), "decode", blocks, " blocks exceed a launch");
  start_dependent("decode", attend<T, L, P, G, Turns>, dim3(static_cast<unsigned>(blocks)), kThreads,
                  floats * sizeof(float), a.follows, stream, a);
}
template <class T, int L, int P>
void start_team(const DecodeAttendArgs& a, const Stream& stream) {
  if (a.distance_cos != nullptr) start_heads<T, L, P, 1, true>(a, stream);
  else if (a.H == a.Hkv) start_heads<T, L, P, 1, false>(a, stream);
  else start_heads<T, L, P, 4, false>(a, stream);
}

template <class T>
__global__ void __launch_bounds__(kThreads) merge(const DecodeMergeArgs a) {
  let_next_start();
  wait_for_earlier();
  SIEVE_GRID_STRIDE(x, a.B * a.parts.H * a.parts.D / kMerged) {
    const std::int64_t at = x * kMerged;
    const Pack<float, kMerged> joined = merged(a.parts, at / a.parts.D, at % a.parts.D);
    Pack<T, kMerged> out;
#pragma unroll
    for (int k = 0; k < kMerged; ++k) out.at[k] = to_element<T>(joined.at[k]);
    store_pack<kMerged>(static_cast<T*>(a.out_BHD) + at, out);
  }
}

}  // namespace

bool decodes(std::int64_t head_dim, DType dtype) {
  if (dtype != DType::f32 && dtype != DType::bf16) return false;
  return head_dim >= 1 && head_dim <= kMaxHead && head_dim * static_cast<std::int64_t>(size_of(dtype)) % 16 == 0;
}

void run(const DecodeAttendArgs& a, Stream stream) {
  require(decodes(a.D, a.dtype), "decode", "head size ", a.D, " of ", name_of(a.dtype));
  if (a.dtype == DType::bf16) {
    if (a.D <= 64) start_team<bf16, 8, 1>(a, stream);
    else if (a.D <= 128) start_team<bf16, 16, 1>(a, stream);
    else start_team<bf16, 32, 1>(a, stream);
  } else {
    if (a.D <= 64) start_team<float, 16, 1>(a, stream);
    else if (a.D <= 128) start_team<float, 32, 1>(a, stream);
    else start_team<float, 32, 2>(a, stream);
  }
}

void run(const DecodeMergeArgs& a, Stream stream) {
  const dim3 grid(blocks_for(a.B * a.parts.H * a.parts.D));
  if (a.dtype == DType::bf16) start_dependent("decode merge", merge<bf16>, grid, kThreads, 0, a.follows, stream, a);
  else start_dependent("decode merge", merge<float>, grid, kThreads, 0, a.follows, stream, a);
}

}  // namespace sieve::cuda
