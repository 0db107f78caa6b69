// How this folder launches: dynamic shared memory is asked for, every launch is checked.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/error.h"
#include "tensor/cuda/check.h"
#include "tensor/device.h"

namespace sieve::cuda {

__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

// Bytes of shared memory that a block may ask for on the calling thread's device: 227 KiB on Hopper, 99 on others.
inline std::int64_t most_shared_bytes() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "shared memory");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
  return bytes;
}

// One block per item of [0, blocks).
template <class... Parameters, class... Arguments>
void start(const char* name, void (*kernel)(Parameters...), std::int64_t blocks, int threads, std::size_t shared,
           const Stream& stream, const Arguments&... arguments) {
  if (blocks == 0) return;
  require(blocks < (std::int64_t{1} << 31), name, blocks, " blocks exceed a launch");
  // The 48 KiB that a launch has without asking hold the kernel's static arrays too, whose size is not known here.
  if (shared > 0) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          name);
  }
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared, handle_of(stream)>>>(arguments...);
  check_launch(name);
}

}  // namespace sieve::cuda
