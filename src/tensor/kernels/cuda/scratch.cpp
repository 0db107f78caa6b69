#include "tensor/kernels/cuda/scratch.h"

#include "tensor/cuda/check.h"

namespace sieve::cuda {

Scratch::Scratch(std::size_t bytes, const Stream& stream) : stream_(stream) {
  if (bytes > 0) check(cudaMallocAsync(&data_, bytes, handle_of(stream)), "scratch memory");
}

Scratch::~Scratch() {
  if (data_) cudaFreeAsync(data_, handle_of(stream_));
}

}  // namespace sieve::cuda
