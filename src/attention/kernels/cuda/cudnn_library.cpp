#include "attention/kernels/cuda/cudnn_library.h"

#include <dlfcn.h>

#include <cstdlib>

#include "core/error.h"
#include "tensor/cuda/check.h"

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // the frontend's headers look their functions up here
}

namespace sieve::cuda {
namespace {

template <class Function>
Function* function_of(const char* name) {
  return reinterpret_cast<Function*>(dlsym(cudnn_frontend::cudnn_dlhandle, name));
}

// Empty, or why cuDNN cannot be used.
std::string open_library() {
  const char* named = std::getenv("SIEVE_CUDNN");
  const char* file = named != nullptr && *named != '\0' ? named : "libcudnn.so.9";
  cudnn_frontend::cudnn_dlhandle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (cudnn_frontend::cudnn_dlhandle == nullptr) {
    const char* why = dlerror();
    return cat("cuDNN cannot be loaded: ", why != nullptr ? why : file);
  }
  if (function_of<decltype(cudnnCreate)>("cudnnCreate") == nullptr ||
      function_of<decltype(cudnnSetStream)>("cudnnSetStream") == nullptr)
    return cat(file, " is not cuDNN");
  // The headers would try an older CUDA runtime first; ours is in this process already.
  const std::string runtime = cat("libcudart.so.", CUDART_VERSION / 1000);
  setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", runtime.c_str(), 0);
  return {};
}

const std::string& library_error() {
  static const std::string& error = *new std::string(open_library());
  return error;
}

}  // namespace

CudnnHandle create_cudnn(Device device) {
  CudnnHandle made;
  made.missing = library_error();
  if (!made.missing.empty()) return made;
  made.loaded = true;
  check(cudaSetDevice(device.index), "cudaSetDevice");
  const cudnnStatus_t status = function_of<decltype(cudnnCreate)>("cudnnCreate")(&made.handle);
  if (status != CUDNN_STATUS_SUCCESS) {
    made.handle = nullptr;
    made.missing = cat("cudnnCreate failed on ", device.str(), " with status ", static_cast<int>(status));
  }
  return made;
}

void set_cudnn_stream(cudnnHandle_t handle, const Stream& stream) {
  const cudnnStatus_t status = function_of<decltype(cudnnSetStream)>("cudnnSetStream")(handle, handle_of(stream));
  require(status == CUDNN_STATUS_SUCCESS, "cudnn", "cudnnSetStream: status ", static_cast<int>(status));
}

}  // namespace sieve::cuda
