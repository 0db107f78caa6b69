// What the passes of the softmax engine share: their arguments on the device, which pairs count, and the weight of a
// pair. Letters as in kernels/softmax.h.
#pragma once

#include "attention/kernels/cuda/launch.cuh"
#include "attention/kernels/cuda/row_lists.cuh"
#include "attention/kernels/cuda/tile.cuh"
#include "attention/spans.h"

namespace sieve::cuda {

inline constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
inline constexpr double kNothing = -1e30;  // where the running maximum starts: inf - inf must not arise

// The order in which a pass visits keys. Pairs beyond rotary.far_distance turn differently, hence visits of their own.
enum Visit { kFarRows = 0, kNearSpan = 1, kSinkSpan = 2, kNearRows = 3, kVisits = 4 };

struct Engine {
  Rows q, far_q, k, far_k, v, dout;
  std::int64_t B = 0, T = 0, H = 0, Hkv = 0, D = 0, tiles = 0;
  double scale = 1;
  DType dtype = DType::f32;
  DevicePlan plan;
  GateView gate;
  RotaryView rotary;
  bool far = false;
  void* out = nullptr;         // (B, T, H, D)
  void* statistics = nullptr;  // (B, H, T)
  // Backward.
  const void* delta = nullptr;  // (B, H, T) dO . o, compute dtype
  void* dqkv = nullptr;         // (B, T, F)
  void* partial = nullptr;      // (B, Hkv, chunks, capacity, 2 D): dK and dV of the rows of chunk lists, compute dtype
  double* column_part = nullptr;   // (B, Hkv, chunks, capacity)
  double* column_heads = nullptr;  // (B, Hkv, T)
  double* row_heads = nullptr;     // (B, H, T)

  SIEVE_HD std::int64_t features() const { return (H + 2 * Hkv) * D; }
  SIEVE_HD std::int64_t group() const { return H / Hkv; }
  SIEVE_HD std::int64_t list_row(std::int64_t b, std::int64_t kv) const {
    return b * plan.heads + (plan.heads == 1 ? 0 : kv);
  }
};

__device__ inline std::int32_t document_of(const Engine& e, std::int64_t b, std::int64_t i) {
  return e.plan.document_starts_BT != nullptr ? e.plan.document_starts_BT[b * e.T + i] : 0;
}
// Keys that query i sees in a span visit; none beyond the end of the row.
__device__ inline Interval span_of(const Engine& e, Visit visit, std::int64_t b, std::int64_t i) {
  if (i >= e.T) return {0, 0};
  const auto at = static_cast<std::int32_t>(i);
  const std::int32_t d = document_of(e, b, i);
  if (visit == kSinkSpan) return spans::sink_keys(at, e.plan.window, e.plan.sinks, d);
  return e.plan.window == 0 ? spans::causal_keys(at, d) : spans::window_keys(at, e.plan.window, d);
}

// What is known of 64 keys. Threads 0 .. 63 fill it, one key each.
struct KeyBlock {
  int key[kSide];                       // -1: none
  std::int32_t from[kSide], to[kSide];  // queries that see a gathered key
  std::int32_t band_from[kSide], band_to[kSide];
  double z[kSide];

  __device__ void span(const Engine& e, int r, std::int64_t first) {
    key[r] = first + r < e.T ? static_cast<int>(first + r) : -1;
  }
  // Entry `at` of a list that has `count`.
  __device__ void gather(const Engine& e, int r, std::int64_t list_row, const std::int32_t* list, std::int64_t at,
                         std::int64_t count) {
    key[r] = at < count ? list[at] : -1;
    from[r] = to[r] = band_from[r] = band_to[r] = 0;
    if (key[r] < 0) return;
    const std::int64_t j = list_row * e.T + key[r];
    const Interval seen = spans::selected_queries(key[r], {e.plan.from_BHT[j], e.plan.to_BHT[j]}, e.plan.window);
    from[r] = seen.begin, to[r] = seen.end;
    if (e.gate.z == nullptr) return;
    z[r] = e.gate.z[j];
    band_from[r] = e.gate.band_from[j], band_to[r] = e.gate.band_to[j];
  }
  // Whether some query of [q0, q1) sees row r in a visit of rows.
  __device__ bool row_is_seen(const Engine& e, int r, Visit visit, std::int64_t q0, std::int64_t q1) const {
    const std::int64_t low = from[r] > q0 ? from[r] : q0, high = to[r] < q1 ? to[r] : q1;
    if (low >= high) return false;
    if (!e.far) return true;
    return visit == kFarRows ? high - 1 - key[r] > e.rotary.far_distance : low - key[r] <= e.rotary.far_distance;
  }
  __device__ bool sees_row(const Engine& e, int r, Visit visit, std::int64_t i) const {
    const bool alive = i >= from[r] && i < to[r];
    return alive && (!e.far || (i - key[r] > e.rotary.far_distance) == (visit == kFarRows));
  }
  // m of a gathered key. Subtracted in fp64: z and tau may share a large slope.
  __device__ double gate(int r, std::int64_t i, double tau) const {
    const double m = z[r] - tau;
    return i < band_from[r] || m > 1 ? 1 : (m < 0 ? 0 : m);
  }
  __device__ bool in_band(int r, std::int64_t i) const { return i >= band_from[r] && i < band_to[r]; }
};

// The tile of 64 queries of one head that a block works on, and how it walks the keys.
struct QueryTile {
  std::int64_t tile, h, b, kv, q0, q1, list_row;
  std::int64_t i[2];  // the thread's two queries

  __device__ explicit QueryTile(const Engine& e)
      : tile(e.tiles - 1 - blockIdx.x % e.tiles),  // longest first
        h(blockIdx.x / e.tiles % e.H),
        b(blockIdx.x / e.tiles / e.H),
        kv(h / e.group()),
        q0(tile * kSide),
        q1(q0 + kSide < e.T ? q0 + kSide : e.T),
        list_row(e.list_row(b, kv)),
        i{q0 + warp_row(), q0 + warp_row() + 8} {}

  __device__ static bool is_rows(Visit visit) { return visit == kFarRows || visit == kNearRows; }
  __device__ std::int64_t list(const Engine& e) const { return list_row * e.plan.tiles.lists + tile; }
  // Keys (of a span) or list entries [begin, end) of a visit; begin is aligned. Empty where the plan has no such visit.
  __device__ Interval range(const Engine& e, Visit visit) const {
    if (is_rows(visit)) return {0, e.plan.from_BHT != nullptr ? count_of(e.plan.tiles, list(e)) : 0};
    if (visit == kSinkSpan && e.plan.sinks == 0) return {0, 0};
    const Interval any = spans::any_of(span_of(e, visit, b, q0), span_of(e, visit, b, q1 - 1));
    return {spans::align_down(any.begin, kSide), any.end};
  }
  // Fills `block` with the 64 keys from `at` on; false if no query sees any. The whole block of threads calls it;
  // begins and ends with a barrier.
  __device__ bool open(const Engine& e, Visit visit, std::int32_t at, std::int32_t end, KeyBlock& block) const {
    __syncthreads();
    const auto thread = static_cast<int>(threadIdx.x);
    bool seen = false;
    if (thread < kSide && is_rows(visit)) {
      block.gather(e, thread, list_row, e.plan.tiles.keys + list(e) * e.plan.tiles.capacity, at + thread, end);
      seen = block.row_is_seen(e, thread, visit, q0, q1);
    } else if (thread < kSide) {
      block.span(e, thread, at);
      seen = !spans::intersect(span_of(e, visit, b, q0 + thread), {at, at + kSide}).empty();
    }
    return __syncthreads_or(seen) != 0;
  }
};

__device__ inline double tau_of(const Engine& e, std::int64_t list_row, std::int64_t i) {
  return e.gate.z != nullptr && i < e.T ? e.gate.tau[list_row * e.T + i] : 0;
}

// Weight of the value, dL/dlogit towards q . k, and dL/dm of a pair that counts (docs/attention.md, "Gates"; the
// formulas stand in kernels/cpu/softmax_backward.cpp). s0 in units of log 2, dv = dO . v; gated: a gathered key that
// has a threshold.
template <class C>
struct PairGradient {
  C weight, ds, g;
};
template <class C>
__device__ inline PairGradient<C> differentiate(GateMode mode, bool gated, C m, C s0, C dv, C statistics, C delta) {
  const bool kv = gated && mode == GateMode::kv, weighs = kv || (gated && mode == GateMode::value);
  const C logit = kv ? m : C(1), value = weighs ? m : C(1), share = gated && mode == GateMode::prob ? m : C(1);
  const C e = power_of_2(s0 * logit - statistics), ds = e * (value * dv - delta);
  const C g = (weighs ? e * dv : ds) + (kv ? ds * s0 * static_cast<C>(kLn2) : C(0));
  return {e * value * share, ds * logit * share, g};
}

// ---- Host side
// Where the passes keep what they hand over. Offsets in bytes, multiples of 256.
struct Workspace {
  std::size_t pack = 0, far_pack = 0, delta = 0, partial = 0, column_part = 0, column_heads = 0, row_heads = 0,
              bytes = 0;
};
Workspace workspace_of(const SoftmaxForwardArgs& a, bool backward, bool scores);
// Fills in the packed (rotated) rows and everything else of the engine; launches the packing.
Engine prepare(const SoftmaxForwardArgs& a, const Workspace& space, Stream stream);
bool fits_tensor_cores(const Engine& e);

// f.template operator()<Math, kPieces>() for the engine's dtype and head size.
template <class F>
void dispatch_tiles(const Engine& e, F&& f) {
  if (e.D > 4 * kSide)
    fail(Exit::config, "attention", "head_dim ", e.D, " exceeds the ", 4 * kSide, " that the GPU's kernels hold");
  if (fits_tensor_cores(e)) {
    if (e.D == kSide) return f.template operator()<TensorCore, 1>();
    return f.template operator()<TensorCore, 2>();
  }
  if (e.dtype == DType::f64) {  // for checks: few variants, whatever they cost
    if (e.D <= kSide) return f.template operator()<Simt<double>, 1>();
    return f.template operator()<Simt<double>, 4>();
  }
  if (e.D <= kSide) return f.template operator()<Simt<float>, 1>();
  if (e.D <= 2 * kSide) return f.template operator()<Simt<float>, 2>();
  f.template operator()<Simt<float>, 4>();
}

}  // namespace sieve::cuda
