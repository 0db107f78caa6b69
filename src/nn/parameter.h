// Named weights. The master copy is fp32 (fp64 in oracle models); where the model computes in bf16, `value` is a bf16
// copy of it. Ops read `value`, the optimizer writes both, checkpoints hold the master.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "autograd/variable.h"

namespace sieve {

struct Parameter {
  std::string name;    // "layers.3.attn.qkv.weight"
  Tensor master;       // fp32 (fp64)
  Variable value;      // leaf, or a constant when frozen; shares the master's memory where the dtypes agree
  bool decay = false;  // weight decay applies (matrices yes; norms, biases and scorers no)
  bool scorer = false;
  bool trainable = true;

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
  ParameterFactory(DType compute, std::uint64_t seed) : compute_(compute), seed_(seed) {}
  ParameterPtr make(const std::string& name, const Shape& shape, Init init);
  ParameterPtr make_scorer(const std::string& name, const Shape& shape, Init init);
  const std::vector<ParameterPtr>& all() const { return all_; }

 private:
  DType compute_;
  std::uint64_t seed_;
  std::vector<ParameterPtr> all_;
};

// After the master changed by other means than the optimizer (loading): refreshes the compute copy.
void refresh_value(Parameter& p);
void freeze(Parameter& p);

}  // namespace sieve
