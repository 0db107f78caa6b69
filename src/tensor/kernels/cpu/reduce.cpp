// Sums: to a scalar, over columns, and over any axes of a view (un-broadcast). Long sums run in fp64 or in blocks, in
// an order that extents alone decide.
#include <algorithm>
#include <vector>

#include "tensor/kernels/cpu/strided.h"

namespace sieve::cpu {
namespace {

constexpr std::int64_t kSumBlock = 8192;   // elements summed by lanes
constexpr std::int64_t kRowBlock = 64;     // rows of a column sum added in the compute dtype before fp64 takes over
constexpr std::int64_t kColumnTile = 256;  // columns one task owns

// Pairwise sum: the tree depends on the count alone.
double tree_sum(const double* x, std::size_t n) {
  if (n == 0) return 0;
  if (n == 1) return x[0];
  const std::size_t half = n / 2;
  return tree_sum(x, half) + tree_sum(x + half, n - half);
}

template <class T>
double blocked_sum(const T* x, std::int64_t n, bool square) {
  const std::int64_t blocks = (n + kSumBlock - 1) / kSumBlock;
  std::vector<double> partial(static_cast<std::size_t>(blocks));
  parallel_for(blocks, 4, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t block = begin; block < end; ++block) {
      const T* p = x + block * kSumBlock;
      const std::int64_t length = std::min(kSumBlock, n - block * kSumBlock);
      partial[static_cast<std::size_t>(block)] =
          square ? lane_sum<double>(length, [p](std::int64_t i) { return double(load(p[i])) * double(load(p[i])); })
                 : lane_sum<double>(length, [p](std::int64_t i) { return double(load(p[i])); });
    }
  });
  return tree_sum(partial.data(), partial.size());
}

// out[c] = sum over rows, one tile of columns.
template <class T, class C>
void column_tile_sum(const T* x, std::int64_t R, std::int64_t ld, std::int64_t columns, C* out, bool accumulate) {
  double total[kColumnTile] = {};
  for (std::int64_t row0 = 0; row0 < R; row0 += kRowBlock) {
    C block[kColumnTile] = {};
    for (std::int64_t row = row0; row < std::min(R, row0 + kRowBlock); ++row) {
      const T* p = x + row * ld;
      for (std::int64_t c = 0; c < columns; ++c) block[c] += load(p[c]);
    }
    for (std::int64_t c = 0; c < columns; ++c) total[c] += static_cast<double>(block[c]);
  }
  for (std::int64_t c = 0; c < columns; ++c) out[c] = static_cast<C>(accumulate ? double(out[c]) + total[c] : total[c]);
}

// The two halves of a reduction's axes: those that stay and those summed over.
struct Axes {
  std::vector<std::int64_t> extents, strides;

  std::int64_t count() const {
    std::int64_t n = 1;
    for (std::int64_t e : extents) n *= e;
    return n;
  }
  std::int64_t offset(std::int64_t index) const {  // of the index-th element in row-major order
    std::int64_t at = 0;
    for (std::size_t axis = extents.size(); axis-- > 0;) {
      at += index % extents[axis] * strides[axis];
      index /= extents[axis];
    }
    return at;
  }
};

// Kept columns that are neighbours in memory: whole tiles of them are summed at once.
template <class T, class O>
void reduce_columns(const T* x, O* out, const Axes& outer, const Axes& summed, std::int64_t columns) {
  const std::int64_t tiles = (columns + kColumnTile - 1) / kColumnTile, terms = summed.count();
  parallel_for(outer.count() * tiles, row_grain(terms * std::min(columns, kColumnTile)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t task = begin; task < end; ++task) {
                   const std::int64_t first = task % tiles * kColumnTile,
                                      width = std::min(kColumnTile, columns - first);
                   const T* base = x + outer.offset(task / tiles) + first;
                   double total[kColumnTile] = {};
                   for (std::int64_t term = 0; term < terms; ++term) {
                     const T* p = base + summed.offset(term);
                     for (std::int64_t c = 0; c < width; ++c) total[c] += static_cast<double>(load(p[c]));
                   }
                   O* to = out + task / tiles * columns + first;
                   for (std::int64_t c = 0; c < width; ++c) to[c] = O(static_cast<compute_t<O>>(total[c]));
                 }
               });
}

// Each output on its own; `inner` is the innermost summed axis.
template <class T, class O>
void reduce_each(const T* x, O* out, const Axes& kept, const Axes& outer, std::int64_t inner,
                 std::int64_t inner_stride) {
  const std::int64_t rows = outer.count();
  parallel_for(kept.count(), row_grain(rows * inner), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t index = begin; index < end; ++index) {
      const T* base = x + kept.offset(index);
      double total = 0;
      for (std::int64_t row = 0; row < rows; ++row) {
        const T* p = base + outer.offset(row);
        total += inner_stride == 1 ? lane_sum<double>(inner, [p](std::int64_t i) { return double(load(p[i])); })
                                   : lane_sum<double>(inner, [p, inner_stride](std::int64_t i) {
                                       return double(load(p[i * inner_stride]));
                                     });
      }
      out[index] = O(static_cast<compute_t<O>>(total));
    }
  });
}

template <class T, class O>
void reduce(const View<2>& view, const T* x, O* out) {
  Axes kept, summed;
  for (std::size_t axis = 0; axis < static_cast<std::size_t>(view.rank); ++axis) {
    Axes& side = view.strides[1][axis] == 0 ? summed : kept;
    side.extents.push_back(view.extents[axis]);
    side.strides.push_back(view.strides[0][axis]);
  }
  if (kept.count() == 1 && summed.extents.size() == 1 &&
      summed.strides[0] == 1) {  // everything, dense: in blocks, on all threads
    *out = O(static_cast<compute_t<O>>(blocked_sum(x, summed.extents[0], false)));
  } else if (!kept.extents.empty() && kept.strides.back() == 1) {
    const std::int64_t columns = kept.extents.back();
    kept.extents.pop_back();
    kept.strides.pop_back();
    reduce_columns(x, out, kept, summed, columns);
  } else {
    const bool any = !summed.extents.empty();
    const std::int64_t inner = any ? summed.extents.back() : 1, stride = any ? summed.strides.back() : 1;
    if (any) {
      summed.extents.pop_back();
      summed.strides.pop_back();
    }
    reduce_each(x, out, kept, summed, inner, stride);
  }
}

}  // namespace

void run(const SumArgs& args) {
  dispatch_float(args.dtype, "sum",
                 [&]<class T>() { *args.sum = blocked_sum(static_cast<const T*>(args.x), args.n, args.square); });
}

void run(const ColumnSumArgs& args) {
  dispatch_float(args.dtype, "column sum", [&]<class T>() {
    using C = compute_t<T>;
    const std::int64_t tiles = (args.N + kColumnTile - 1) / kColumnTile;
    parallel_for(tiles, row_grain(args.R * kColumnTile), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t tile = begin; tile < end; ++tile) {
        const std::int64_t first = tile * kColumnTile;
        column_tile_sum(static_cast<const T*>(args.x_RN) + first, args.R, args.ld,
                        std::min(kColumnTile, args.N - first), static_cast<C*>(args.out_N) + first, args.accumulate);
      }
    });
  });
}

void run(const ReduceArgs& args) {
  // Strides of the output, 0 along the summed axes.
  Extents kept_extents = args.extents;
  for (std::size_t axis = 0; axis < kMaxRank; ++axis) kept_extents[axis] = args.reduce[axis] ? 1 : args.extents[axis];
  Extents out_strides = dense_strides(args.rank, kept_extents);
  for (std::size_t axis = 0; axis < kMaxRank; ++axis) out_strides[axis] = args.reduce[axis] ? 0 : out_strides[axis];
  const auto view = coalesce(View<2>{args.rank, args.extents, {args.x_strides, out_strides}});
  for (std::size_t axis = 0; axis < static_cast<std::size_t>(args.rank); ++axis) {
    if (kept_extents[axis] == 0) return;  // no outputs
  }
  require(args.out_dtype == args.dtype || args.out_dtype == compute_dtype(args.dtype), "reduce", name_of(args.dtype),
          " into ", name_of(args.out_dtype));
  dispatch_float(args.dtype, "reduce", [&]<class T>() {
    const T* x = static_cast<const T*>(args.x);
    if (args.out_dtype == args.dtype) {
      reduce(view, x, static_cast<T*>(args.out));
    } else {
      reduce(view, x, static_cast<compute_t<T>*>(args.out));
    }
  });
}

}  // namespace sieve::cpu
