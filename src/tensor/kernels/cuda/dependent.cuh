// Launches that overlap with the one before: the kernel may start while its predecessor still runs, does what depends
// on nothing of it (weights on their way to registers or the cache), and waits. A kernel calls let_next_start() at its
// beginning and wait_for_earlier() before it reads what any earlier launch of the sequence wrote, or writes anything.
// All blocks must wait: then a finished kernel means that all before it are finished too. Below sm_90 launches do not
// overlap and both calls do nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <nv/target>
#include <type_traits>

#include "core/error.h"
#include "tensor/cuda/check.h"
#include "tensor/device.h"

namespace sieve::cuda {

__device__ inline void let_next_start() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("griddepcontrol.launch_dependents;" ::: "memory");))
}
__device__ inline void wait_for_earlier() {
  NV_IF_TARGET(NV_PROVIDES_SM_90, (asm volatile("griddepcontrol.wait;" ::: "memory");))
}
__device__ inline void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

inline int attribute_of(const Stream& stream, cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, stream.device.index), "cudaDeviceGetAttribute");
  return value;
}

// `follows`: the launch before on this stream is one of the same sequence that keeps the rules above. After anything
// else (a library's launches may be copies or fills) it is false, and the launch waits as launches do.
template <class... Args>
void start_dependent(const char* name, void (*kernel)(Args...), dim3 grid, int threads, std::size_t shared,
                     bool follows, const Stream& stream, const std::type_identity_t<Args>&... args) {
  if (grid.x == 0 || grid.y == 0) return;
  if (shared > 0) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          name);
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = handle_of(stream);
  config.attrs = &overlap;
  config.numAttrs = follows && attribute_of(stream, cudaDevAttrComputeCapabilityMajor) >= 9 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, args...), name);
}

}  // namespace sieve::cuda
