// cuDNN, opened when it is first asked for: a program built with it starts, and trains by its own kernels, on a machine
// that has none. libcudnn.so.9 is looked for as the dynamic loader looks (LD_LIBRARY_PATH, the program's run path, the
// system's folders); SIEVE_CUDNN=/path/to/libcudnn.so.9 names one. It opens its other parts (libcudnn_graph,
// _heuristic, _engines_*) and libnvrtc itself, from its own folder or by the loader.
#pragma once

#include <cudnn.h>

#include <string>

#include "tensor/device.h"

namespace sieve::cuda {

// A handle of the device, made on first use and kept, or why there is none. Not to be used by two threads at a time.
struct CudnnHandle {
  cudnnHandle_t handle = nullptr;
  std::string missing;
  bool loaded = false;  // the library is there: that it gives no handle may pass
};
CudnnHandle create_cudnn(Device device);
void set_cudnn_stream(cudnnHandle_t handle, const Stream& stream);

}  // namespace sieve::cuda
