// The tensors of an op lie on one device. A kernel of a GPU that reads an address of the host, or of another GPU, is a
// fault that no later call of the process survives; here it is an error that names the tensor. record()
// (autograd/record.h) asks it of every op's inputs; what an op takes beside them (ids, targets, document starts, a
// choice, exits, a state) and what never comes by record() is asked where it is taken.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <span>
#include <string_view>

#include "core/error.h"
#include "tensor/tensor.h"

namespace sieve {

struct NamedTensor {
  std::string_view name;
  const Tensor& tensor;
};

// Error(Exit::internal) under the op's name where one of `inputs` lies elsewhere than on `device`, that of the op's
// first input. Undefined ones lie nowhere. To be asked before a kernel reads any of them.
inline void require_on(const Device& device, std::string_view op, std::initializer_list<NamedTensor> inputs) {
  for (const NamedTensor& x : inputs) {
    if (!x.tensor.defined() || x.tensor.device() == device) continue;
    fail(Exit::internal, op, x.name, " ", x.tensor.shape(), " lies on ", x.tensor.device().str(), ", the op runs on ",
         device.str(), ": bring it there first, by Tensor::to(stream)");
  }
}

// The same of an op's inputs, counted from 1: the first that is defined says where the op runs.
inline void require_together(std::string_view op, std::span<const Tensor> inputs) {
  const Tensor* first = nullptr;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].defined()) continue;
    if (first == nullptr) first = &inputs[i];
    else if (inputs[i].device() != first->device())
      require_on(first->device(), op, {{cat("input ", i + 1), inputs[i]}});
  }
}

}  // namespace sieve
