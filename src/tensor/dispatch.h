// One place decides which backend runs a kernel: the device of the stream. A kernel family is a struct derived from
// KernelArgs with an overload `cpu::run(const Args&)` and, in a CUDA build, `cuda::run(const Args&, Stream)`.
#pragma once

#include <type_traits>
#include <typeinfo>

#include "core/build.h"
#include "core/error.h"
#include "tensor/device.h"
#include "tensor/profile.h"

namespace sieve {
namespace cpu {
struct Backend {};
}  // namespace cpu
namespace cuda {
struct Backend {};
}  // namespace cuda

// Base of every Args struct. Its bases make argument-dependent lookup search cpu:: and cuda::, so that launch finds
// overloads that are declared after it (a qualified call would see only those declared before).
struct KernelArgs : cpu::Backend, cuda::Backend {};

template <class Args>
void launch(const Stream& stream, const Args& args) {
  static_assert(std::is_base_of_v<KernelArgs, Args>, "derive the Args struct from KernelArgs");
  const KernelTimer timer(typeid(Args).name(), stream);
  if (stream.device.is_cuda()) {
    if constexpr (build::with_cuda) {
      run(args, stream);
    } else {
      fail(Exit::internal, "dispatch", "this build has no CUDA backend");
    }
  } else {
    run(args);
  }
}

}  // namespace sieve
