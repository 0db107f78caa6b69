#include "train/adamw.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "tensor/kernels/kernels.h"

namespace sieve {
namespace {

struct Segments {
  std::vector<std::int64_t> ends;
  std::vector<float> decays;
};

// Who decays within `range`, counted from its begin; neighbours of one kind are one segment.
Segments segments_of(const std::vector<ParameterPtr>& parameters, const FlatLayout& layout,
                     const FlatLayout::Range& range) {
  Segments out;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const float decay = parameters[i]->decay ? 1.f : 0.f;
    const std::int64_t end = i + 1 < parameters.size() ? layout.begins[i + 1] : layout.numel;
    if (end <= range.begin || layout.begins[i] >= range.end) continue;
    const std::int64_t relative = std::min(end, range.end) - range.begin;
    if (!out.ends.empty() && out.decays.back() == decay) {
      out.ends.back() = relative;
    } else {
      out.ends.push_back(relative);
      out.decays.push_back(decay);
    }
  }
  return out;
}

template <class T>
Tensor on_device(const std::vector<T>& values, const Stream& stream) {
  return from_values<T>(values, {static_cast<std::int64_t>(values.size())}).to(stream);
}

// Elements that a parameter and a rank's part have in common, counted in the whole flat range.
FlatLayout::Range overlap(const FlatLayout& layout, std::size_t i, const FlatLayout::Range& mine) {
  const std::int64_t begin = std::max(layout.begins[i], mine.begin);
  return {begin, std::max(begin, std::min(layout.begins[i] + layout.numels[i], mine.end))};
}

}  // namespace

AdamW::AdamW(const OptimizerConfig& config, std::vector<ParameterPtr> parameters, Communicator* shared)
    : config_(config), parameters_(std::move(parameters)), shared_(shared && shared->size() > 1 ? shared : nullptr) {
  require(!parameters_.empty(), "adamw", "no parameters");
  const Stream stream = parameters_.front()->master.stream();
  flat_ = place_parameters(parameters_, stream);
  require(flat_ && flat_->layout.size() == parameters_.size(), "adamw", "a parameter is frozen");
  mine_ = shared_ ? FlatLayout::part(flat_->layout.numel, shared_->rank(), shared_->size())
                  : FlatLayout::Range{0, flat_->layout.numel};
  m_ = zeros({mine_.numel()}, DType::f32, stream);
  v_ = zeros({mine_.numel()}, DType::f32, stream);
  const Segments segments = segments_of(parameters_, flat_->layout, mine_);
  segment_end_ = on_device(segments.ends, stream);
  segment_decay_ = on_device(segments.decays, stream);
}

void AdamW::step(const Tensor& gradient, double lr, double grad_scale, const Tensor& control) {
  require(
      gradient.defined() && gradient.shape() == flat_->master.shape() && gradient.device() == flat_->master.device(),
      "adamw", "the flat gradient is another one than that of ", layout().numel, " elements on ",
      flat_->master.device().str());
  ++updates_;
  const auto part = [this](const Tensor& t) { return t.slice(0, mine_.begin, mine_.end); };
  if (mine_.numel() > 0)
    launch(m_.stream(), AdamWArgs{.p = part(flat_->master).data<float>(),
                                  .m = m_.data<float>(),
                                  .v = v_.data<float>(),
                                  .g = part(gradient).data<float>(),
                                  .copy_bf16 = flat_->copy.defined() ? part(flat_->copy).data<bf16>() : nullptr,
                                  .n = mine_.numel(),
                                  .step = updates_,
                                  .lr = lr,
                                  .beta1 = config_.betas[0],
                                  .beta2 = config_.betas[1],
                                  .eps = config_.eps,
                                  .weight_decay = config_.weight_decay,
                                  .grad_scale = grad_scale,
                                  .segment_end = segment_end_.data<std::int64_t>(),
                                  .segment_decay = segment_decay_.data<float>(),
                                  .segments = segment_end_.numel(),
                                  .control = control.defined() ? control.data<float>() : nullptr});
  if (shared_) exchange_masters();
}

// Masters travel in fp32, so that every rank rounds the same copy from them and can write a checkpoint.
void AdamW::exchange_masters() {
  for (int owner = 0; owner < shared_->size(); ++owner) {
    const auto range = FlatLayout::part(layout().numel, owner, shared_->size());
    if (range.numel() == 0) continue;
    Tensor part = flat_->master.slice(0, range.begin, range.end);
    shared_->broadcast(part, owner, "updated weights");
    if (owner != shared_->rank() && flat_->copy.defined()) flat_->copy.slice(0, range.begin, range.end).copy_from(part);
  }
}

void AdamW::step(std::span<const Tensor> grads, double lr, double grad_scale) {
  require(grads.size() == parameters_.size(), "adamw", grads.size(), " gradients for ", parameters_.size(),
          " parameters");
  const Tensor flat = zeros(flat_->master.shape(), DType::f32, flat_->master.stream());
  for (std::size_t i = 0; i < grads.size(); ++i) {
    require(grads[i].defined() && grads[i].shape() == parameters_[i]->master.shape(), "adamw", "gradient of ",
            parameters_[i]->name, " has another shape");
    const std::int64_t begin = layout().begins[i];
    flat.slice(0, begin, begin + grads[i].numel()).reshape(grads[i].shape()).copy_from(grads[i]);
  }
  step(flat, lr, grad_scale);
}

// All parts, one behind the other, on rank 0's CPU; undefined on the others.
Tensor AdamW::whole(const Tensor& mine, std::string_view what) const {
  const Tensor part = mine.to(Stream{});
  Tensor nothing = empty({0}, DType::f32);
  if (shared_->rank() != 0) {
    shared_->exchange(part, nothing, 0, what);
    return {};
  }
  Tensor all = empty({layout().numel}, DType::f32);
  all.slice(0, mine_.begin, mine_.end).copy_from(part);
  for (int owner = 1; owner < shared_->size(); ++owner) {
    const auto range = FlatLayout::part(layout().numel, owner, shared_->size());
    Tensor theirs = all.slice(0, range.begin, range.end);
    shared_->exchange(nothing, theirs, owner, what);
  }
  return all;
}

TensorMap AdamW::state() const {
  TensorMap tensors;
  const Tensor m = shared_ ? whole(m_, "moments") : m_, v = shared_ ? whole(v_, "moments") : v_;
  if (!m.defined()) return tensors;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const Shape& shape = parameters_[i]->master.shape();
    const std::int64_t begin = layout().begins[i], end = begin + shape.numel();
    tensors[parameters_[i]->name + ".m"] = m.slice(0, begin, end).reshape(shape);
    tensors[parameters_[i]->name + ".v"] = v.slice(0, begin, end).reshape(shape);
  }
  return tensors;
}

void AdamW::restore(const SafetensorsFile& file, std::int64_t updates) {
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const auto common = overlap(layout(), i, mine_);
    for (const auto& [suffix, moments] : {std::pair{".m", m_}, std::pair{".v", v_}}) {
      const std::string name = parameters_[i]->name + suffix;
      if (file.find(name) == nullptr) fail(Exit::data, "checkpoint", file.path().string(), " lacks the moment ", name);
      if (common.numel() == 0) continue;
      Tensor read = empty(parameters_[i]->master.shape(), DType::f32);
      file.read_into(name, read);
      const std::int64_t begin = layout().begins[i];
      moments.slice(0, common.begin - mine_.begin, common.end - mine_.begin)
          .copy_from(read.flatten().slice(0, common.begin - begin, common.end - begin));
    }
  }
  updates_ = updates;
}

double gradient_norm(std::span<const Tensor> grads) {
  double total = 0;
  for (const Tensor& g : grads) {
    const Tensor sum = empty({}, DType::f64, g.stream());
    launch(g.stream(),
           SumArgs{.x = g.raw(), .sum = sum.data<double>(), .n = g.numel(), .square = true, .dtype = g.dtype()});
    total += sum.item();
  }
  return std::sqrt(total);
}

double clip_factor(double norm, double clip) { return clip > 0 && norm > clip ? clip / norm : 1.0; }

}  // namespace sieve
