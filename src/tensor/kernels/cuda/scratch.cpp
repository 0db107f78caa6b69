#include "tensor/kernels/cuda/scratch.h"

#include "core/error.h"
#include "tensor/cuda/check.h"
#include "tensor/cuda/runtime.h"

namespace sieve::cuda {

Scratch::Scratch(std::size_t bytes, const Stream& stream) : stream_(stream) {
  if (bytes == 0) return;
  data_ = allocate(bytes, stream);
  if (data_ == nullptr)
    fail(Exit::memory, "cuda", "out of memory on ", stream.device.str(), ": ", bytes,
         " bytes of working memory wanted; smaller micro-batches, shorter sequences or recompute need less");
}

Scratch::~Scratch() {
  if (data_) cudaFreeAsync(data_, handle_of(stream_));
}

}  // namespace sieve::cuda
