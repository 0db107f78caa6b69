// One place decides which backend runs a kernel: the device of the stream. A kernel family is an Args struct with an overload
// `cpu::run(const Args&)` and, in a CUDA build, `cuda::run(const Args&, Stream)`.
#pragma once

#include "core/build.h"
#include "core/error.h"
#include "tensor/device.h"

namespace sieve {
namespace cpu {}
namespace cuda {}

template <class Args>
void launch(const Stream& stream, const Args& args) {
  if (stream.device.is_cuda()) {
    if constexpr (build::with_cuda) {
      using namespace cuda;
      run(args, stream);
    } else {
      fail(Exit::internal, "dispatch", "this build has no CUDA backend");
    }
  } else {
    cpu::run(args);
  }
}

}  // namespace sieve
