// Named weights. The master copy is fp32 (fp64 in oracle models); where the model computes in bf16, `value` is a bf16
// copy of it. Ops read `value`, the optimizer writes both, checkpoints hold the master. Weights are made on the CPU,
// one by one (the same bits for every device), and placed: see place_parameters().
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "autograd/variable.h"
#include "tensor/flat_layout.h"

namespace sieve {

// The flat buffers that hold all trainable parameters of a model.
struct FlatParameters {
  FlatLayout layout;
  Tensor master;  // (layout.numel)
  Tensor copy;    // the same in bf16; undefined where the model computes in the masters' dtype
};

struct Parameter {
  std::string name;    // "layers.3.attn.qkv.weight"
  Tensor master;       // fp32 (fp64)
  Variable value;      // leaf, or a constant when frozen; shares the master's memory where the dtypes agree
  bool decay = false;  // weight decay applies (matrices yes; norms, biases and scorers no)
  bool scorer = false;
  bool trainable = true;
  std::shared_ptr<const FlatParameters> flat;  // where master and value are views of, once placed

  std::int64_t numel() const { return master.numel(); }
};
using ParameterPtr = std::shared_ptr<Parameter>;

// How a weight starts: normal with this deviation, or a constant where std is 0.
struct Init {
  double std = 0;
  double constant = 0;
};

// Creates parameters in a fixed order; that order numbers the gradient buckets and the random streams of the
// initialisation.
class ParameterFactory {
 public:
  // shapes_only: weights of the right shapes that all share one number, to be counted, not used.
  ParameterFactory(DType compute, std::uint64_t seed, bool shapes_only = false)
      : compute_(compute), seed_(seed), shapes_only_(shapes_only) {}
  ParameterPtr make(const std::string& name, const Shape& shape, Init init);
  ParameterPtr make_scorer(const std::string& name, const Shape& shape, Init init);
  const std::vector<ParameterPtr>& all() const { return all_; }

 private:
  DType compute_;
  std::uint64_t seed_;
  bool shapes_only_;
  std::vector<ParameterPtr> all_;
};

// Moves parameters to the device of `stream`: the trainable ones one behind the other, in their order, into flat
// buffers, each frozen one by itself. Bits, leaves and their hooks stay; gradients do not. Nothing moves where all lie
// so already. Returns the flat buffers; null if no parameter is trainable.
std::shared_ptr<const FlatParameters> place_parameters(const std::vector<ParameterPtr>& parameters,
                                                       const Stream& stream);

// After the master changed by other means than the optimizer (loading): refreshes the compute copy.
void refresh_value(Parameter& p);
void freeze(Parameter& p);

}  // namespace sieve
