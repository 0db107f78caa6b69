// AdamW over named parameters (Loshchilov & Hutter 2019, arXiv 1711.05101): fp32 master weights, fp32 moments, one
// kernel call for all of them. Weight decay acts where Parameter::decay says so.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "dist/communicator.h"
#include "io/safetensors.h"
#include "nn/parameter.h"
#include "train/run_config.h"

namespace sieve {

class AdamW {
 public:
  // `parameters`: the trainable ones; they are placed flat on their device if they are not yet; moments start at 0.
  // `shared` (ZeRO-1; Rajbhandari et al. 2020, arXiv 1910.02054): each rank keeps the moments of its part of the flat
  // range and updates that part; then all ranks exchange the updated masters. The bits are those of a run without it.
  AdamW(const OptimizerConfig& config, std::vector<ParameterPtr> parameters, Communicator* shared = nullptr);

  // One update with rate `lr` by the flat gradient (layout() says what lies where), seen as grad_scale * gradient. Of a
  // shared optimizer only the own part of it is read. `control` as in AdamWArgs, on the parameters' device: an update
  // that it forbids is taken back with forget_update() once the host knows.
  void step(const Tensor& gradient, double lr, double grad_scale, const Tensor& control = {});
  // The same with one gradient a parameter (fp32, its shape): copies them first.
  void step(std::span<const Tensor> grads, double lr, double grad_scale);
  void forget_update() { --updates_; }

  const std::vector<ParameterPtr>& parameters() const { return parameters_; }
  const FlatLayout& layout() const { return flat_->layout; }
  std::int64_t updates() const { return updates_; }  // applied so far; the bias correction counts them
  bool shared() const { return shared_ != nullptr; }

  // Moments as "<parameter>.m" and "<parameter>.v": views of the live state. Of a shared optimizer: copies on the CPU,
  // on rank 0 alone; every rank calls it.
  TensorMap state() const;
  void restore(const SafetensorsFile& file, std::int64_t updates);  // Exit::data on a missing or misshapen moment

 private:
  Tensor whole(const Tensor& mine, std::string_view what) const;
  void exchange_masters();

  OptimizerConfig config_;
  std::vector<ParameterPtr> parameters_;
  Communicator* shared_;
  std::shared_ptr<const FlatParameters> flat_;
  FlatLayout::Range mine_;              // of the flat range: whose moments this rank keeps
  Tensor m_, v_;                        // (mine_.numel())
  Tensor segment_end_, segment_decay_;  // of mine_: see AdamWArgs
  std::int64_t updates_ = 0;
};

// Global L2 norm of the gradients: fp64, a fixed tree inside each tensor, tensors added in order, so that it depends on
// nothing but values.
double gradient_norm(std::span<const Tensor> grads);

// Factor that brings a gradient of this norm down to `clip` (1 where it is below, or clip is 0).
double clip_factor(double norm, double clip);

}  // namespace sieve
