// The way of small host tensors (token ids) to a GPU without a wait: through page-locked buffers that are used in turn.
#pragma once

#include <vector>

#include "tensor/runtime.h"
#include "tensor/tensor.h"

namespace sieve {

class Staging {
 public:
  explicit Staging(const Stream& stream, int slots = 8);

  // A dense copy on the stream's device, ready for later work of that stream. `host` may be reused at once. Undefined
  // tensors and, on the CPU, every tensor come back as they are.
  Tensor upload(const Tensor& host);

 private:
  struct Slot {
    Tensor buffer;  // pinned bytes, grown as needed
    Event copied;   // what it held last has left it
  };
  Stream stream_;
  std::vector<Slot> slots_;
  std::size_t next_ = 0;
};

}  // namespace sieve
