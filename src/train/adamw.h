// AdamW over named parameters (Loshchilov & Hutter 2019, arXiv 1711.05101): fp32 master weights, fp32 moments, one
// fused kernel call a parameter. Weight decay acts where Parameter::decay says so.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "io/safetensors.h"
#include "nn/parameter.h"
#include "train/run_config.h"

namespace sieve {

class AdamW {
 public:
  // `parameters`: the trainable ones; moments start at 0.
  AdamW(const OptimizerConfig& config, std::vector<ParameterPtr> parameters);

  // One update with rate `lr`. grads[i] is parameter i's gradient (fp32, same shape), seen as grad_scale * grads[i].
  void step(std::span<const Tensor> grads, double lr, double grad_scale);

  const std::vector<ParameterPtr>& parameters() const { return parameters_; }
  std::int64_t updates() const { return updates_; }  // applied so far; the bias correction counts them

  // Moments as "<parameter>.m" and "<parameter>.v": views of the live state.
  TensorMap state() const;
  void restore(const SafetensorsFile& file, std::int64_t updates);  // Exit::data on a missing or misshapen moment

 private:
  OptimizerConfig config_;
  std::vector<ParameterPtr> parameters_;
  std::vector<Tensor> m_, v_;
  std::int64_t updates_ = 0;
};

// Global L2 norm of the gradients: fp64, a fixed tree inside each tensor, tensors added in order, so that it depends on
// nothing but values.
double gradient_norm(std::span<const Tensor> grads);

// Factor that brings a gradient of this norm down to `clip` (1 where it is below, or clip is 0).
double clip_factor(double norm, double clip);

}  // namespace sieve
