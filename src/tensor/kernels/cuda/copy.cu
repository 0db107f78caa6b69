// Strided copies that convert, and fills. A copy without conversion moves units of up to 16 bytes: the view is
// rewritten to count them.
#include <cmath>

#include "tensor/kernels/cuda/map.cuh"
#include "tensor/kernels/cuda/strided.cuh"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

template <class F>
void dispatch_any(DType t, F&& f) {
  switch (t) {
    case DType::f32: return f.template operator()<float>();
    case DType::bf16: return f.template operator()<bf16>();
    case DType::f64: return f.template operator()<double>();
    case DType::i32: return f.template operator()<std::int32_t>();
    case DType::i64: return f.template operator()<std::int64_t>();
    case DType::u8: return f.template operator()<std::uint8_t>();
  }
  fail(Exit::internal, "copy", "unknown dtype ", static_cast<int>(t));
}

// Calls f with a value of the unsigned type of that many bytes.
template <class F>
void dispatch_unit(std::size_t bytes, F&& f) {
  switch (bytes) {
    case 1: return f(std::uint8_t{});
    case 2: return f(std::uint16_t{});
    case 4: return f(std::uint32_t{});
    case 8: return f(std::uint64_t{});
    default: return f(uint4{});
  }
}

// Through float where bf16 is a side: it has no other conversions.
template <class D, class S>
__host__ __device__ D convert(S value) {
  if constexpr (std::is_same_v<D, S>) {
    return value;
  } else if constexpr (std::is_same_v<S, bf16>) {
    return static_cast<D>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<D, bf16>) {
    return bf16(static_cast<float>(value));
  } else {
    return static_cast<D>(value);
  }
}

template <class D, class S>
struct Convert {
  __device__ D operator()(S value) const { return convert<D>(value); }
};

template <class S, class D, class Index>
__global__ void __launch_bounds__(kThreads)
    copy_view(std::int64_t n, DeviceView<Index, 2> view, const S* __restrict__ src, D* __restrict__ dst) {
  SIEVE_GRID_STRIDE(i, n) {
    std::int64_t at[2];
    view.offsets(static_cast<Index>(i), at);
    dst[at[1]] = convert<D>(src[at[0]]);
  }
}

template <class S, class D>
void launch_view(const cpu::View<2>& view, const void* src, void* dst, const Stream& stream) {
  const std::int64_t n = count_of(view);
  with_index(n, [&](auto zero) {
    using Index = decltype(zero);
    copy_view<S, D, Index><<<blocks_for(n), kThreads, 0, handle_of(stream)>>>(
        n, device_view<Index>(view), static_cast<const S*>(src), static_cast<D*>(dst));
  });
  check_launch("copy");
}

// Transposition of the two inner axes through a tile in shared memory, so that reads and writes both run along rows.
// The view (batch, rows, columns): src steps 1 along rows, dst steps 1 along columns.
constexpr int kTile = 32, kTileRows = 8;
struct Transpose {
  std::int64_t batches, rows, columns, src_batch, src_column, dst_batch, dst_row;
};

template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    transpose(Transpose t, std::int64_t tiles_down, std::int64_t tiles_across, const T* __restrict__ src,
              T* __restrict__ dst) {
  __shared__ T tile[kTile][kTile + 1];
  const std::int64_t tiles = t.batches * tiles_down * tiles_across;
  for (std::int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const std::int64_t batch = index / (tiles_down * tiles_across), rest = index % (tiles_down * tiles_across);
    const std::int64_t row0 = rest / tiles_across * kTile, column0 = rest % tiles_across * kTile;
    for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kTileRows) {
      const std::int64_t row = row0 + threadIdx.x, column = column0 + y;
      if (row < t.rows && column < t.columns)
        tile[y][threadIdx.x] = src[batch * t.src_batch + column * t.src_column + row];
    }
    __syncthreads();
    for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kTileRows) {
      const std::int64_t row = row0 + y, column = column0 + threadIdx.x;
      if (row < t.rows && column < t.columns)
        dst[batch * t.dst_batch + row * t.dst_row + column] = tile[threadIdx.x][y];
    }
    __syncthreads();  // before the next tile overwrites this one
  }
}

bool launch_transpose(const cpu::View<2>& view, std::size_t size, const CopyArgs& args, const Stream& stream) {
  if (view.rank < 2 || view.rank > 3) return false;
  const auto column = static_cast<std::size_t>(view.rank - 1), row = column - 1;
  const auto& [src, dst] = view.strides;
  if (dst[column] != 1 || src[row] != 1 || view.extents[row] < 8 || view.extents[column] < 8) return false;
  const bool batched = view.rank == 3;
  const Transpose t{
      batched ? view.extents[0] : 1, view.extents[row], view.extents[column], batched ? src[0] : 0, src[column],
      batched ? dst[0] : 0,          dst[row]};
  const std::int64_t down = (t.rows + kTile - 1) / kTile, across = (t.columns + kTile - 1) / kTile;
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(t.batches * down * across, 1 << 20));
  dispatch_unit(size, [&](auto unit) {
    using T = decltype(unit);
    if constexpr (sizeof(T) <= 8) {
      transpose<T><<<blocks, dim3(kTile, kTileRows), 0, handle_of(stream)>>>(
          t, down, across, static_cast<const T*>(args.src), static_cast<T*>(args.dst));
    }
  });
  check_launch("copy");
  return true;
}

// The widest unit, in elements, that rows, steps and addresses are multiples of.
std::int64_t unit_of(const cpu::View<2>& view, std::size_t size, const CopyArgs& args) {
  if (view.inner_stride(0) != 1 || view.inner_stride(1) != 1) return 1;
  for (std::int64_t unit = static_cast<std::int64_t>(16 / size); unit > 1; unit /= 2) {
    const auto bytes = static_cast<std::uintptr_t>(unit) * size;
    bool fits = view.inner() % unit == 0 && reinterpret_cast<std::uintptr_t>(args.src) % bytes == 0 &&
                reinterpret_cast<std::uintptr_t>(args.dst) % bytes == 0;
    for (int axis = 0; axis + 1 < view.rank; ++axis) {
      for (const auto& strides : view.strides) fits = fits && strides[static_cast<std::size_t>(axis)] % unit == 0;
    }
    if (fits) return unit;
  }
  return 1;
}

void copy_same(cpu::View<2> view, const CopyArgs& args, const Stream& stream) {
  const std::size_t size = size_of(args.src_dtype);
  if (view.rank == 1 && view.inner_stride(0) == 1 && view.inner_stride(1) == 1) {
    check(cudaMemcpyAsync(args.dst, args.src, static_cast<std::size_t>(view.inner()) * size, cudaMemcpyDeviceToDevice,
                          handle_of(stream)),
          "copy");
    return;
  }
  if (launch_transpose(view, size, args, stream)) return;
  const std::int64_t unit = unit_of(view, size, args);
  const auto last = static_cast<std::size_t>(view.rank - 1);
  view.extents[last] /= unit;
  for (auto& strides : view.strides) {
    for (std::size_t axis = 0; axis < last; ++axis) strides[axis] /= unit;
  }
  dispatch_unit(size * static_cast<std::size_t>(unit), [&](auto word) {
    using T = decltype(word);
    launch_view<T, T>(view, args.src, args.dst, stream);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) fill_wide(T* dst, std::int64_t n, T value, uint4 pattern) {
  constexpr int N = kPack<T>;
  SIEVE_GRID_STRIDE(i, (n + N - 1) / N) {
    if ((i + 1) * N <= n) {
      reinterpret_cast<uint4*>(dst)[i] = pattern;
    } else {
      for (std::int64_t k = i * N; k < n; ++k) dst[k] = value;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) fill_each(T* dst, std::int64_t n, T value) {
  SIEVE_GRID_STRIDE(i, n) { dst[i] = value; }
}

}  // namespace

void run(const CopyArgs& args, Stream stream) {
  const auto view = cpu::coalesce(cpu::View<2>{args.rank, args.extents, {args.src_strides, args.dst_strides}});
  if (count_of(view) == 0) return;
  if (args.src_dtype == args.dst_dtype) return copy_same(view, args, stream);
  const bool dense = view.rank == 1 && view.inner_stride(0) == 1 && view.inner_stride(1) == 1;
  dispatch_any(args.src_dtype, [&]<class S>() {
    dispatch_any(args.dst_dtype, [&]<class D>() {
      if constexpr (!std::is_same_v<S, D>) {
        if constexpr (is_float(dtype_of<S>) && is_float(dtype_of<D>)) {
          if (dense) {
            map(view.inner(), Convert<D, S>{}, static_cast<D*>(args.dst), static_cast<const S*>(args.src), stream,
                "copy");
            return;
          }
        }
        launch_view<S, D>(view, args.src, args.dst, stream);
      }
    });
  });
}

void run(const FillArgs& args, Stream stream) {
  if (args.n == 0) return;
  if (args.value == 0 && !std::signbit(args.value)) {
    check(cudaMemsetAsync(args.dst, 0, static_cast<std::size_t>(args.n) * size_of(args.dtype), handle_of(stream)),
          "fill");
    return;
  }
  dispatch_any(args.dtype, [&]<class T>() {
    const T value = convert<T>(args.value);
    T* dst = static_cast<T*>(args.dst);
    if (aligned<kPack<T>>(dst)) {
      uint4 pattern;
      for (std::size_t k = 0; k < 16 / sizeof(T); ++k)
        std::memcpy(reinterpret_cast<std::byte*>(&pattern) + k * sizeof(T), &value, sizeof(T));
      const std::int64_t packs = (args.n + kPack<T> - 1) / kPack<T>;
      fill_wide<T><<<blocks_for(packs), kThreads, 0, handle_of(stream)>>>(dst, args.n, value, pattern);
    } else {
      fill_each<T><<<blocks_for(args.n), kThreads, 0, handle_of(stream)>>>(dst, args.n, value);
    }
  });
  check_launch("fill");
}

}  // namespace sieve::cuda
