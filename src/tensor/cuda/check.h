// Every CUDA call goes through check(): a failure names the call and what to do.
#pragma once

#include <cuda_runtime.h>

#include "core/error.h"
#include "tensor/device.h"

namespace sieve::cuda {

inline cudaStream_t handle_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle); }

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // taken: a later check must not report it again
  if (error == cudaErrorMemoryAllocation)
    fail(Exit::memory, "cuda", what,
         ": out of device memory; smaller micro-batches, shorter sequences or recompute need less");
  if (error == cudaErrorNoKernelImageForDevice)
    fail(
        Exit::config, "cuda", what,
        ": this program holds no code for this GPU; configure with -DCMAKE_CUDA_ARCHITECTURES=<its compute capability> "
        "(sieve doctor shows it), or use device.type=cpu");
  fail(Exit::internal, "cuda", what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

// After every launch. A wrong launch shows at once; a fault inside a kernel at a later call, which
// CUDA_LAUNCH_BLOCKING=1 or compute-sanitizer pins down.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace sieve::cuda
