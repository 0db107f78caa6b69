// One key-value head of a row, as the recurrences of linear_forward.cpp and linear_backward.cpp read it: elements in
// the compute type, features applied. The state advances position by position: at every step exact, without the
// quotients of accumulated decays that a chunk in matrix form needs. Columns of the state lie in vector lanes.
#pragma once

#include <algorithm>
#include <vector>

#include "attention/kernels/linear.h"

namespace sieve::cpu {

template <class C>
C dot(const C* x, const C* y, std::int64_t n) {
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t v = 0; v < n; ++v) sum += x[v] * y[v];
  return sum;
}

// y += factor x
template <class C>
void add_scaled(C factor, const C* __restrict__ x, C* __restrict__ y, std::int64_t n) {
  for (std::int64_t v = 0; v < n; ++v) y[v] += factor * x[v];
}

template <class T>
class LinearHead {
 public:
  using C = compute_t<T>;

  LinearHead(const LinearArgs& args, std::int64_t b, std::int64_t kv)
      : a(args),
        b_(b),
        kv_(kv),
        qkv_(static_cast<const T*>(a.qkv_BTF) + b * a.T * a.features()),
        starts_(a.document_starts_BT ? a.document_starts_BT + b * a.T : nullptr),
        key_(static_cast<std::size_t>(a.D)),
        value_(static_cast<std::size_t>(a.columns()), C(1)),
        decay_(static_cast<std::size_t>(a.D)) {
    if (a.entry_first_BHT == nullptr) return;
    const std::int64_t row = b * a.Hs + (a.Hs == 1 ? 0 : kv);
    entry_first_ = a.entry_first_BHT + row * (a.T + 1);
    entry_keys_ = a.entry_keys_BHT + row * a.T;
  }

  std::int64_t group() const { return a.H / a.Hkv; }
  std::int64_t head(std::int64_t g) const { return kv_ * group() + g; }
  bool restarts(std::int64_t t) const { return starts_ != nullptr && starts_[t] == t; }

  const T* query_at(std::int64_t t, std::int64_t g) const { return qkv_ + t * a.features() + head(g) * a.D; }
  const T* key_at(std::int64_t t) const { return qkv_ + t * a.features() + (a.H + kv_) * a.D; }
  const T* value_at(std::int64_t t) const { return qkv_ + t * a.features() + (a.H + a.Hkv) * a.D + kv_ * a.V; }
  const T* gate_at(std::int64_t t) const {
    return static_cast<const T*>(a.gates_BTHD) + ((b_ * a.T + t) * a.Hkv + kv_) * a.D;
  }

  void query(std::int64_t t, std::int64_t g, C* out) const {
    const C scale = static_cast<C>(1 / std::sqrt(static_cast<double>(a.D)));
    const T* q = query_at(t, g);
    for (std::int64_t d = 0; d < a.D; ++d)
      out[d] = a.gated() ? scale * static_cast<C>(q[d]) : elu_feature(static_cast<C>(q[d]));
  }
  const C* key(std::int64_t t) {
    const T* k = key_at(t);
    for (std::int64_t d = 0; d < a.D; ++d) {
      const C x = static_cast<C>(k[d]);
      key_[static_cast<std::size_t>(d)] = a.gated() ? x : elu_feature(x);
    }
    return key_.data();
  }
  const C* value(std::int64_t t) {  // (columns)
    const T* v = value_at(t);
    for (std::int64_t x = 0; x < a.V; ++x) value_[static_cast<std::size_t>(x)] = static_cast<C>(v[x]);
    return value_.data();
  }
  const C* decay(std::int64_t t) {  // alpha - 1, (D)
    const T* gate = gate_at(t);
    for (std::int64_t d = 0; d < a.D; ++d)
      decay_[static_cast<std::size_t>(d)] = decay_less_one(static_cast<C>(gate[d]), static_cast<C>(a.power));
    return decay_.data();
  }

  // f(j) for the keys that enter at t.
  template <class F>
  void for_each_entry(std::int64_t t, F f) const {
    if (entry_first_ == nullptr) return f(t);
    for (std::int32_t x = entry_first_[t]; x < entry_first_[t + 1]; ++x) f(entry_keys_[x]);
  }

  // S_{t-1} becomes S_t.
  void advance(std::int64_t t, C* state) {
    const std::int64_t Z = a.columns();
    if (restarts(t)) {
      std::fill_n(state, a.D * Z, C(0));
    } else if (a.gated()) {
      const C* less = decay(t);
      for (std::int64_t d = 0; d < a.D; ++d)
        for (std::int64_t v = 0; v < Z; ++v) state[d * Z + v] += less[d] * state[d * Z + v];
    }
    for_each_entry(t, [&](std::int64_t j) {
      const C *k = key(j), *v = value(j);
      for (std::int64_t d = 0; d < a.D; ++d) add_scaled(k[d], v, state + d * Z, Z);
    });
  }

  const LinearArgs& a;

 private:
  std::int64_t b_, kv_;
  const T* qkv_;
  const std::int32_t* starts_;
  const std::int32_t* entry_first_ = nullptr;
  const std::int32_t* entry_keys_ = nullptr;
  std::vector<C> key_, value_, decay_;
};

template <class F>
void by_linear_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f.template operator()<float>();
    case DType::bf16: return f.template operator()<bf16>();
    case DType::f64: return f.template operator()<double>();
    default: fail(Exit::internal, "linear attention", "wants f32, bf16 or f64, got ", name_of(dtype));
  }
}

}  // namespace sieve::cpu
