// Loops over views: several operands that share extents, each with its own strides.
#pragma once

#include <array>
#include <cstdint>

#include "core/parallel_for.h"
#include "tensor/kernels/cpu/vec.h"
#include "tensor/kernels/kernels.h"

namespace sieve::cpu {

template <std::size_t Operands>
struct View {
  int rank = 0;
  Extents extents{};
  std::array<Extents, Operands> strides{};

  std::int64_t inner() const { return extents[static_cast<std::size_t>(rank - 1)]; }
  std::int64_t inner_stride(std::size_t operand) const { return strides[operand][static_cast<std::size_t>(rank - 1)]; }
  std::int64_t rows() const {  // of the innermost axis
    std::int64_t n = 1;
    for (int axis = 0; axis + 1 < rank; ++axis) n *= extents[static_cast<std::size_t>(axis)];
    return n;
  }
};

inline Extents dense_strides(int rank, const Extents& extents) {
  Extents strides{};
  std::int64_t step = 1;
  for (int axis = rank - 1; axis >= 0; --axis) {
    strides[static_cast<std::size_t>(axis)] = step;
    step *= extents[static_cast<std::size_t>(axis)];
  }
  return strides;
}

// The same view with the fewest axes (at least one): axes of extent 1 go, neighbours that every operand walks as one
// become one.
template <std::size_t Operands>
View<Operands> coalesce(const View<Operands>& in) {
  View<Operands> out;
  out.rank = 0;
  for (int axis = 0; axis < in.rank; ++axis) {
    const auto a = static_cast<std::size_t>(axis);
    if (in.extents[a] == 1) continue;
    const auto last = static_cast<std::size_t>(out.rank - 1);
    bool joins = out.rank > 0;
    for (std::size_t s = 0; joins && s < Operands; ++s)
      joins = out.strides[s][last] == in.strides[s][a] * in.extents[a];
    const auto to = joins ? last : static_cast<std::size_t>(out.rank++);
    out.extents[to] = joins ? out.extents[last] * in.extents[a] : in.extents[a];
    for (std::size_t s = 0; s < Operands; ++s) out.strides[s][to] = in.strides[s][a];
  }
  if (out.rank == 0) {
    out.rank = 1;
    out.extents[0] = 1;
  }
  return out;
}

// Calls f(begin, end, offsets) for pieces [begin, end) of the innermost axis, in parallel; offsets[operand] counts
// elements up to the row's first one. A long row is cut, short rows are grouped.
template <std::size_t Operands, class F>
void for_each_row(const View<Operands>& view, const F& f) {
  const std::int64_t inner = view.inner(), rows = view.rows();
  if (inner == 0 || rows == 0) return;
  const std::int64_t cuts = std::max<std::int64_t>(1, inner / kGrain);
  parallel_for(rows * cuts, row_grain(inner / cuts), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t row = index / cuts, cut = index % cuts;
      std::array<std::int64_t, Operands> offsets{};
      std::int64_t rest = row;
      for (int axis = view.rank - 2; axis >= 0; --axis) {
        const auto a = static_cast<std::size_t>(axis);
        const std::int64_t position = rest % view.extents[a];
        rest /= view.extents[a];
        for (std::size_t s = 0; s < Operands; ++s) offsets[s] += position * view.strides[s][a];
      }
      f(inner * cut / cuts, inner * (cut + 1) / cuts, offsets);
    }
  });
}

}  // namespace sieve::cpu
