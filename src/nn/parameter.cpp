#include "nn/parameter.h"

#include "core/rng.h"

namespace sieve {
namespace {

// Keyed by the name, not by the order: adding a scorer to a model does not change how the rest starts.
std::uint64_t stream_of_name(const std::string& name) {
  std::uint64_t h = 0xcbf29ce484222325ull;  // FNV-1a
  for (unsigned char c : name) h = (h ^ c) * 0x100000001b3ull;
  return stream_of(h);
}

// `source` at its place in the flat buffer `home`.
Tensor placed(const Tensor& home, std::int64_t begin, const Tensor& source) {
  Tensor view = home.slice(0, begin, begin + source.numel()).reshape(source.shape());
  view.copy_from(source);
  return view;
}

void move_value(Parameter& p, const Tensor& value) {
  p.value.leaf_state() ? p.value.replace_value(value) : void(p.value = Variable(value));
}

// The buffers that hold exactly these parameters in this order on this device already.
std::shared_ptr<const FlatParameters> common_home(const std::vector<ParameterPtr>& trainable, const FlatLayout& layout,
                                                  Device device) {
  const auto home = trainable.front()->flat;
  if (!home || home->layout != layout || home->master.device() != device) return nullptr;
  for (std::size_t i = 0; i < trainable.size(); ++i) {
    const Parameter& p = *trainable[i];
    if (p.flat != home || p.master.raw() != home->master.slice(0, layout.begins[i], layout.begins[i]).raw())
      return nullptr;
  }
  return home;
}

}  // namespace

ParameterPtr ParameterFactory::make(const std::string& name, const Shape& shape, Init init) {
  auto p = std::make_shared<Parameter>();
  p->name = name;
  const DType master = compute_ == DType::f64 ? DType::f64 : DType::f32;
  if (shapes_only_) p->master = zeros({1}, master).expand(shape);
  else if (init.std > 0) p->master = random_normal(shape, 0.0, init.std, seed_, stream_of_name(name), master);
  else p->master = full(shape, init.constant, master);
  p->decay = shape.rank() >= 2;
  p->value = Variable::leaf(shapes_only_ ? p->master : p->master.to(compute_));
  all_.push_back(p);
  return p;
}

ParameterPtr ParameterFactory::make_scorer(const std::string& name, const Shape& shape, Init init) {
  ParameterPtr p = make(name, shape, init);
  // The scorer stays in fp32: its scores decide an order, and bf16 weights would tie or swap keys (docs/numerics.md).
  if (compute_ == DType::bf16) p->value = Variable::leaf(p->master);
  p->scorer = true;
  p->decay = false;
  return p;
}

std::shared_ptr<const FlatParameters> place_parameters(const std::vector<ParameterPtr>& parameters,
                                                       const Stream& stream) {
  std::vector<ParameterPtr> trainable;
  std::vector<Shape> shapes;
  bool copies = false;
  for (const ParameterPtr& p : parameters) {
    if (p->trainable) {
      trainable.push_back(p);
      shapes.push_back(p->master.shape());
      copies = copies || p->value.dtype() != p->master.dtype();
    } else {
      const bool shared = p->value.value().same_storage(p->master);
      p->master = p->master.to(stream);
      move_value(*p, shared ? p->master : p->value.value().to(stream));
    }
  }
  if (trainable.empty()) return nullptr;
  FlatLayout layout(shapes);
  if (auto home = common_home(trainable, layout, stream.device)) return home;
  auto home = std::make_shared<FlatParameters>();
  home->layout = std::move(layout);
  home->master = zeros({home->layout.numel}, trainable.front()->master.dtype(), stream);
  if (copies) home->copy = zeros({home->layout.numel}, DType::bf16, stream);
  for (std::size_t i = 0; i < trainable.size(); ++i) {
    Parameter& p = *trainable[i];
    const bool shared = p.value.value().same_storage(p.master);
    p.master = placed(home->master, home->layout.begins[i], p.master);
    move_value(p, shared ? p.master : placed(home->copy, home->layout.begins[i], p.value.value()));
    p.flat = home;
  }
  return home;
}

void refresh_value(Parameter& p) {
  if (!p.value.value().same_storage(p.master)) Tensor(p.value.value()).copy_from(p.master);
}

void freeze(Parameter& p) {
  p.trainable = false;
  if (p.flat) {  // out of the flat range, which holds what is trained
    const bool shared = p.value.value().same_storage(p.master);
    p.master = p.master.clone();
    p.value = Variable(shared ? p.master : p.value.value().clone());
    p.flat = nullptr;
    return;
  }
  p.value = Variable(p.value.value());
}

}  // namespace sieve
