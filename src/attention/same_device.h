// The tensors of an op lie on one device. A kernel of a GPU that reads an address of the host, or of another GPU, is a
// fault that no later call of the process survives; here it is an error that names the tensor.
#pragma once

#include <initializer_list>
#include <string_view>

#include "tensor/tensor.h"

namespace sieve {

struct NamedTensor {
  std::string_view name;
  const Tensor& tensor;
};

// Error(Exit::internal) under the op's name where one of `inputs` lies elsewhere than on `device`, that of the op's
// first input. Undefined ones lie nowhere. To be asked before any of them is read.
inline void require_on(const Device& device, std::string_view op, std::initializer_list<NamedTensor> inputs) {
  for (const NamedTensor& x : inputs) {
    if (!x.tensor.defined() || x.tensor.device() == device) continue;
    fail(Exit::internal, op, x.name, " ", x.tensor.shape(), " lies on ", x.tensor.device().str(), ", the op runs on ",
         device.str(), ": bring it there first, by Tensor::to(stream)");
  }
}

}  // namespace sieve
