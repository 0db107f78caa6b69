// Working memory of a kernel, from the stream-ordered allocator: freed in stream order, so it may go out of scope after
// the launch.
#pragma once

#include <cstddef>

#include "tensor/device.h"

namespace sieve::cuda {

class Scratch {
 public:
  Scratch(std::size_t bytes, const Stream& stream);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  Stream stream_;
};

}  // namespace sieve::cuda
