// Views on the device: the offsets of the i-th element, in row-major order, of several operands that share extents.
#pragma once

#include "tensor/kernels/cpu/strided.h"
#include "tensor/kernels/cuda/block.cuh"

namespace sieve::cuda {

// Index is 32 bits wide where the count allows: its divisions cost a fifth.
template <class Index, int Operands>
struct DeviceView {
  int rank = 0;
  Index extents[kMaxRank] = {};
  std::int64_t strides[Operands][kMaxRank] = {};

  __device__ void offsets(Index i, std::int64_t (&at)[Operands]) const {
#pragma unroll
    for (int s = 0; s < Operands; ++s) at[s] = 0;
#pragma unroll
    for (int axis = kMaxRank - 1; axis > 0; --axis) {
      if (axis >= rank) continue;
      const Index rest = i / extents[axis], position = i - rest * extents[axis];
#pragma unroll
      for (int s = 0; s < Operands; ++s) at[s] += static_cast<std::int64_t>(position) * strides[s][axis];
      i = rest;
    }
#pragma unroll
    for (int s = 0; s < Operands; ++s) at[s] += static_cast<std::int64_t>(i) * strides[s][0];
  }
};

template <class Index, std::size_t Operands>
DeviceView<Index, static_cast<int>(Operands)> device_view(const cpu::View<Operands>& view) {
  DeviceView<Index, static_cast<int>(Operands)> out;
  out.rank = view.rank;
  for (std::size_t axis = 0; axis < static_cast<std::size_t>(view.rank); ++axis) {
    out.extents[axis] = static_cast<Index>(view.extents[axis]);
    for (std::size_t s = 0; s < Operands; ++s) out.strides[s][axis] = view.strides[s][axis];
  }
  return out;
}

template <std::size_t Operands>
std::int64_t count_of(const cpu::View<Operands>& view) {
  return view.rows() * view.inner();
}

// Calls f with a zero of the index type that counts to n.
template <class F>
void with_index(std::int64_t n, F&& f) {
  if (n < (std::int64_t{1} << 31)) {
    f(std::uint32_t{0});
  } else {
    f(std::uint64_t{0});
  }
}

}  // namespace sieve::cuda
