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

}  // namespace

ParameterPtr ParameterFactory::make(const std::string& name, const Shape& shape, Init init) {
  auto p = std::make_shared<Parameter>();
  p->name = name;
  const DType master = compute_ == DType::f64 ? DType::f64 : DType::f32;
  p->master = init.std > 0 ? random_normal(shape, 0.0, init.std, seed_, stream_of_name(name), master)
                           : full(shape, init.constant, master);
  p->decay = shape.rank() >= 2;
  p->value = Variable::leaf(p->master.to(compute_));
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

void refresh_value(Parameter& p) {
  if (!p.value.value().same_storage(p.master)) Tensor(p.value.value()).copy_from(p.master);
}

void freeze(Parameter& p) {
  p.trainable = false;
  p.value = Variable(p.value.value());
}

}  // namespace sieve
