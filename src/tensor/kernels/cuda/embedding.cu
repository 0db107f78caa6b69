// Rows of a table chosen by ids, and the deterministic scatter-add behind it. R ids, V vocabulary, C channels.
// An id outside [0, V) gives a row of NaN forward and is left out backward.
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "tensor/kernels/cuda/pack.cuh"
#include "tensor/kernels/cuda/scratch.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

constexpr int kWarps = kThreads / 32;

template <class Unit>
__device__ Unit all_ones() {  // a NaN in every float type
  Unit out;
  memset(&out, 0xff, sizeof(Unit));
  return out;
}

// A warp a row of `units`.
template <class Unit>
__global__ void __launch_bounds__(kThreads)
    gather_rows(const Unit* __restrict__ w, const std::int32_t* __restrict__ ids, Unit* __restrict__ y, std::int64_t R,
                std::int64_t V, std::int64_t units) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; r < R; r += warps) {
    const std::int32_t id = ids[r];
    const bool known = id >= 0 && id < V;
    const Unit* from = w + (known ? id : 0) * units;
    Unit* to = y + r * units;
#pragma unroll 4
    for (std::int64_t i = lane; i < units; i += 32) to[i] = known ? from[i] : all_ones<Unit>();
  }
}

template <class Unit>
void launch_gather(const EmbeddingArgs& a, std::int64_t units, const Stream& stream) {
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>((a.R + kWarps - 1) / kWarps, 1 << 20));
  gather_rows<Unit><<<blocks, kThreads, 0, handle_of(stream)>>>(static_cast<const Unit*>(a.w_VC), a.ids_R,
                                                                static_cast<Unit*>(a.y_RC), a.R, a.V, units);
}

// ---- Backward: rows sorted by id, stably, so that an id's rows are neighbours in row order. The sorted list is cut
// into tiles of 32. A run of one id inside a tile is summed into dw at once; of a run that crosses tiles each tile
// keeps its part, and the parts are added in order.
constexpr int kTile = 32;

__global__ void __launch_bounds__(kThreads) make_keys(const std::int32_t* __restrict__ ids, std::int64_t R,
                                                      std::int64_t V, std::uint32_t* keys, std::int32_t* rows) {
  SIEVE_GRID_STRIDE(r, R) {
    keys[r] = static_cast<std::uint32_t>(ids[r] >= 0 && ids[r] < V ? ids[r] : V);  // what is outside sorts last
    rows[r] = static_cast<std::int32_t>(r);
  }
}

struct Sorted {
  const std::uint32_t* keys;  // R, ascending; V: left out
  const std::int32_t* rows;
  std::int64_t R, V, C;
};

// parts: for each tile a row of C for the run that comes from the tile before (or fills the tile), and one for the run
// that starts here and goes on.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_tiles(Sorted s, const T* __restrict__ dy, bool wide, bool accumulate, std::int64_t tiles, std::int64_t spans,
              compute_t<T>* __restrict__ parts, compute_t<T>* __restrict__ dw) {
  using G = compute_t<T>;
  constexpr int N = kPack<T>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t task = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (task >= tiles * spans) return;
  const std::int64_t tile = task / spans, column = (task % spans * 32 + lane) * N, begin = tile * kTile;
  const int count = static_cast<int>(min(static_cast<std::int64_t>(kTile), s.R - begin));
  const std::uint32_t none = 0xffffffffu;
  const std::uint32_t key = lane < count ? s.keys[begin + lane] : none;
  const std::int32_t row = lane < count ? s.rows[begin + lane] : 0;
  const std::uint32_t before = begin > 0 ? s.keys[begin - 1] : none;
  const std::uint32_t after = begin + count < s.R ? s.keys[begin + count] : none;
  const std::int64_t left = s.C - column;

  G sum[N] = {};
  std::uint32_t run_id = __shfl_sync(0xffffffffu, key, 0);
  bool from_before = run_id == before;
  const auto finish = [&](bool goes_on) {
    if (run_id == s.V || left <= 0) return;
    const bool whole = !from_before && !goes_on;
    G* to = whole ? dw + static_cast<std::int64_t>(run_id) * s.C + column
                  : parts + (tile * 2 + (from_before ? 0 : 1)) * s.C + column;
    Pack<G, N> out;
    if (whole && accumulate) out = load_part<N>(to, left, wide);
#pragma unroll
    for (int k = 0; k < N; ++k) out.at[k] = whole && accumulate ? out.at[k] + sum[k] : sum[k];
    store_part<N>(to, out, left, wide);
  };
  constexpr int kAhead = 4;  // rows in flight
  for (int first = 0; first < count; first += kAhead) {
    Pack<T, N> v[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const std::int64_t r = __shfl_sync(0xffffffffu, row, first + j);
      v[j] = load_part<N>(dy + r * s.C + column, first + j < count ? left : 0, wide);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const std::uint32_t id = __shfl_sync(0xffffffffu, key, first + j);
      if (first + j >= count) continue;
      if (id != run_id) {
        finish(false);
        run_id = id;
        from_before = false;
#pragma unroll
        for (int k = 0; k < N; ++k) sum[k] = 0;
      }
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] += to_compute(v[j].at[k]);
    }
  }
  finish(run_id == after);
}

// A thread a column of the run that starts in a tile and goes on: its parts in order.
template <class G>
__global__ void __launch_bounds__(kThreads)
    join_runs(Sorted s, bool accumulate, std::int64_t tiles, const G* __restrict__ parts, G* __restrict__ dw) {
  const std::int64_t tile = blockIdx.x, end = (tile + 1) * kTile;
  if (end >= s.R) return;
  const std::uint32_t id = s.keys[end - 1];
  if (id != s.keys[end] || id == s.V) return;                                            // nothing goes on
  if (s.keys[tile * kTile] == id && tile > 0 && s.keys[tile * kTile - 1] == id) return;  // nothing starts
  // The last tile that the run reaches: the id's last place is found by halving.
  std::int64_t low = end, high = s.R - 1;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (s.keys[middle] == id) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const std::int64_t last = low / kTile;
  for (std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x; c < s.C;
       c += static_cast<std::int64_t>(gridDim.y) * kThreads) {
    G sum = parts[(tile * 2 + 1) * s.C + c];
#pragma unroll 8
    for (std::int64_t t = tile + 1; t <= last; ++t) sum += parts[t * 2 * s.C + c];
    G* to = dw + static_cast<std::int64_t>(id) * s.C + c;
    *to = accumulate ? *to + sum : sum;
  }
}

// Sorts (id, row); `keys` and `rows` hold 2 R entries each, the sorted ones second.
void sort_rows(const EmbeddingBackwardArgs& a, std::uint32_t* keys, std::int32_t* rows, const Stream& stream) {
  make_keys<<<blocks_for(a.R), kThreads, 0, handle_of(stream)>>>(a.ids_R, a.R, a.V, keys, rows);
  check_launch("embedding backward");
  const int bits = std::bit_width(static_cast<std::uint64_t>(a.V));
  const auto sort = [&](void* memory, std::size_t& bytes) {
    check(cub::DeviceRadixSort::SortPairs(memory, bytes, keys, keys + a.R, rows, rows + a.R, a.R, 0, bits,
                                          handle_of(stream)),
          "embedding backward");
  };
  std::size_t bytes = 0;
  sort(nullptr, bytes);
  const Scratch memory(std::max<std::size_t>(bytes, 1), stream);
  sort(memory.as<void>(), bytes);
}

}  // namespace

void run(const EmbeddingArgs& a, Stream stream) {
  if (a.R * a.C == 0) return;
  const std::int64_t row_bytes = a.C * static_cast<std::int64_t>(size_of(a.dtype));
  const auto addresses = reinterpret_cast<std::uintptr_t>(a.w_VC) | reinterpret_cast<std::uintptr_t>(a.y_RC);
  if (row_bytes % 16 == 0 && addresses % 16 == 0) {
    launch_gather<uint4>(a, row_bytes / 16, stream);
  } else if (row_bytes % 4 == 0 && addresses % 4 == 0) {
    launch_gather<std::uint32_t>(a, row_bytes / 4, stream);
  } else {
    launch_gather<std::uint16_t>(a, row_bytes / 2, stream);
  }
  check_launch("embedding");
}

void run(const EmbeddingBackwardArgs& a, Stream stream) {
  require(a.R < (std::int64_t{1} << 31), "embedding backward", a.R, " rows in one call");
  const std::size_t dw_bytes = static_cast<std::size_t>(a.V * a.C) * size_of(compute_dtype(a.dtype));
  if (!a.accumulate && dw_bytes > 0)
    check(cudaMemsetAsync(a.dw_VC, 0, dw_bytes, handle_of(stream)), "embedding backward");
  if (a.R * a.C == 0) return;
  const auto R = static_cast<std::size_t>(a.R);
  const Scratch keys(2 * R * sizeof(std::uint32_t), stream), rows(2 * R * sizeof(std::int32_t), stream);
  sort_rows(a, keys.as<std::uint32_t>(), rows.as<std::int32_t>(), stream);
  const Sorted sorted{keys.as<std::uint32_t>() + R, rows.as<std::int32_t>() + R, a.R, a.V, a.C};
  dispatch_float(a.dtype, "embedding", [&]<class T>() {
    using G = compute_t<T>;
    constexpr int N = kPack<T>;
    const T* dy = static_cast<const T*>(a.dy_RC);
    G* dw = static_cast<G*>(a.dw_VC);
    const std::int64_t tiles = (a.R + kTile - 1) / kTile, spans = (a.C + 32 * N - 1) / (32 * N);
    const Scratch parts(static_cast<std::size_t>(tiles * 2 * a.C) * sizeof(G), stream);
    const bool wide = a.C % N == 0 && aligned<N>(dy) && aligned<N>(dw);
    const auto blocks = static_cast<unsigned>((tiles * spans + kWarps - 1) / kWarps);
    sum_tiles<T>
        <<<blocks, kThreads, 0, handle_of(stream)>>>(sorted, dy, wide, a.accumulate, tiles, spans, parts.as<G>(), dw);
    check_launch("embedding backward");
    const dim3 grid(static_cast<unsigned>(tiles),
                    static_cast<unsigned>(std::min<std::int64_t>((a.C + kThreads - 1) / kThreads, 1 << 15)));
    join_runs<G><<<grid, kThreads, 0, handle_of(stream)>>>(sorted, a.accumulate, tiles, parts.as<G>(), dw);
    check_launch("embedding backward");
  });
}

}  // namespace sieve::cuda
