#include "train/adamw.h"

#include <cmath>

#include "core/error.h"
#include "tensor/kernels/kernels.h"

namespace sieve {

AdamW::AdamW(const OptimizerConfig& config, std::vector<ParameterPtr> parameters)
    : config_(config), parameters_(std::move(parameters)) {
  for (const auto& p : parameters_) {
    m_.push_back(zeros_like(p->master));
    v_.push_back(zeros_like(p->master));
  }
}

void AdamW::step(std::span<const Tensor> grads, double lr, double grad_scale) {
  require(grads.size() == parameters_.size(), "adamw", grads.size(), " gradients for ", parameters_.size(),
          " parameters");
  ++updates_;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = *parameters_[i];
    const Tensor& value = p.value.value();
    require(grads[i].defined() && grads[i].shape() == p.master.shape(), "adamw", "gradient of ", p.name,
            " has another shape");
    launch(p.master.stream(), AdamWArgs{.p = p.master.data<float>(),
                                        .m = m_[i].data<float>(),
                                        .v = v_[i].data<float>(),
                                        .g = grads[i].data<float>(),
                                        .copy_bf16 = value.dtype() == DType::bf16 ? value.data<bf16>() : nullptr,
                                        .n = p.numel(),
                                        .step = updates_,
                                        .lr = lr,
                                        .beta1 = config_.betas[0],
                                        .beta2 = config_.betas[1],
                                        .eps = config_.eps,
                                        .weight_decay = p.decay ? config_.weight_decay : 0.0,
                                        .grad_scale = grad_scale});
  }
}

TensorMap AdamW::state() const {
  TensorMap tensors;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    tensors[parameters_[i]->name + ".m"] = m_[i];
    tensors[parameters_[i]->name + ".v"] = v_[i];
  }
  return tensors;
}

void AdamW::restore(const SafetensorsFile& file, std::int64_t updates) {
  for (auto& [name, tensor] : state()) {
    if (file.find(name) == nullptr) fail(Exit::data, "checkpoint", file.path().string(), " lacks the moment ", name);
    file.read_into(name, tensor);
  }
  updates_ = updates;
}

double gradient_norm(std::span<const Tensor> grads) {
  double total = 0;
  for (const Tensor& g : grads) {
    double sum = 0;
    launch(g.stream(), SumArgs{.x = g.raw(), .sum = &sum, .n = g.numel(), .square = true, .dtype = g.dtype()});
    total += sum;
  }
  return std::sqrt(total);
}

double clip_factor(double norm, double clip) { return clip > 0 && norm > clip ? clip / norm : 1.0; }

}  // namespace sieve
