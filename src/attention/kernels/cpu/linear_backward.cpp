// Backward: chunk by chunk from the end. The states of a chunk are made again from the one kept before it; the gradient
// of the state walks back through them. Every key enters once, so its gradients are written once.
#include "attention/kernels/cpu/linear_head.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

template <class T>
class BackwardHead {
 public:
  using C = compute_t<T>;

  BackwardHead(const LinearBackwardArgs& args, std::int64_t b, std::int64_t kv)
      : back_(args),
        a(args.forward),
        b_(b),
        kv_(kv),
        Z(a.columns()),
        size_(a.D * Z),
        head_(a, b, kv),
        states_(static_cast<std::size_t>((kLinearChunk + 1) * size_)),
        dstate_(static_cast<std::size_t>(size_)),
        query_(static_cast<std::size_t>(a.D)),
        dquery_(static_cast<std::size_t>(a.D)),
        draw_(static_cast<std::size_t>(Z)),
        dvalue_(static_cast<std::size_t>(Z)) {}

  void run() {
    if (a.entry_first_BHT != nullptr) clear_keys();
    const std::int64_t row = b_ * a.Hkv + kv_;
    for (std::int64_t chunk = a.chunks() - 1; chunk >= 0; --chunk) {
      const std::int64_t first = chunk * kLinearChunk, end = std::min(a.T, first + kLinearChunk);
      std::copy_n(static_cast<const C*>(a.chunk_states) + (row * a.chunks() + chunk) * size_, size_, states_.data());
      for (std::int64_t t = first; t < end; ++t) {
        std::copy_n(state(t - first), size_, state(t - first + 1));
        head_.advance(t, state(t - first + 1));
      }
      for (std::int64_t t = end - 1; t >= first; --t) step(t, state(t - first), state(t - first + 1));
    }
  }

 private:
  C* state(std::int64_t step) { return states_.data() + step * size_; }
  T* gradient_of(const T* element) const {
    return static_cast<T*>(back_.dqkv_BTF) + (element - static_cast<const T*>(a.qkv_BTF));
  }

  // Keys that never enter.
  void clear_keys() {
    for (std::int64_t t = 0; t < a.T; ++t) {
      std::fill_n(gradient_of(head_.key_at(t)), a.D, T{});
      std::fill_n(gradient_of(head_.value_at(t)), a.V, T{});
    }
  }

  void step(std::int64_t t, const C* before, const C* after) {
    for (std::int64_t g = 0; g < head_.group(); ++g) query(t, g, after);
    head_.for_each_entry(t, [&](std::int64_t j) { entry(j); });
    if (head_.restarts(t)) {
      if (a.gated()) std::fill_n(dgate_at(t), a.D, T{});
      std::fill_n(dstate_.data(), size_, C(0));
    } else if (a.gated()) {
      decay(t, before);
    }
  }

  // The gradient of r = S^T query, `draw_`, reaches the query and the state.
  void query(std::int64_t t, std::int64_t g, const C* after) {
    const std::int64_t row = (b_ * a.T + t) * a.H + head_.head(g);
    const T* dout = static_cast<const T*>(back_.dout_BTHV) + row * a.V;
    C factor = 1;
    if (!a.gated()) {
      const C sum = static_cast<const C*>(a.sums_BTH)[row];
      factor = sum == 0 ? C(0) : 1 / sum;
    }
    head_.query(t, g, query_.data());
    for (std::int64_t v = 0; v < a.V; ++v) draw_[static_cast<std::size_t>(v)] = factor * static_cast<C>(dout[v]);
    for (std::int64_t d = 0; d < a.D; ++d) dquery_[static_cast<std::size_t>(d)] = dot(after + d * Z, draw_.data(), a.V);
    if (!a.gated()) {  // out = r / r_last: the sum's gradient is -(dout . out) / sum, without the rounding of out
      const C dsum = -factor * dot(query_.data(), dquery_.data(), a.D);
      draw_[static_cast<std::size_t>(a.V)] = dsum;
      for (std::int64_t d = 0; d < a.D; ++d) dquery_[static_cast<std::size_t>(d)] += dsum * after[d * Z + a.V];
    }
    const C scale = static_cast<C>(1 / std::sqrt(static_cast<double>(a.D)));
    const T* q = head_.query_at(t, g);
    T* dq = gradient_of(q);
    for (std::int64_t d = 0; d < a.D; ++d) {
      const auto x = static_cast<std::size_t>(d);
      dq[d] = static_cast<T>(dquery_[x] * (a.gated() ? scale : elu_slope(static_cast<C>(q[d]))));
      add_scaled(query_[x], draw_.data(), dstate_.data() + d * Z, Z);
    }
  }

  void entry(std::int64_t j) {
    const C *k = head_.key(j), *v = head_.value(j);
    const T* element = head_.key_at(j);
    T* dk = gradient_of(element);
    std::fill_n(dvalue_.data(), Z, C(0));
    for (std::int64_t d = 0; d < a.D; ++d) {
      const C* ds = dstate_.data() + d * Z;
      dk[d] = static_cast<T>(dot(ds, v, Z) * (a.gated() ? C(1) : elu_slope(static_cast<C>(element[d]))));
      add_scaled(k[d], ds, dvalue_.data(), Z);
    }
    T* dv = gradient_of(head_.value_at(j));
    for (std::int64_t x = 0; x < a.V; ++x) dv[x] = static_cast<T>(dvalue_[static_cast<std::size_t>(x)]);
  }

  T* dgate_at(std::int64_t t) const {
    return static_cast<T*>(back_.dgates_BTHD) + ((b_ * a.T + t) * a.Hkv + kv_) * a.D;
  }

  void decay(std::int64_t t, const C* before) {
    const C* less = head_.decay(t);
    const T* gate = head_.gate_at(t);
    T* dgate = dgate_at(t);
    for (std::int64_t d = 0; d < a.D; ++d) {
      C* ds = dstate_.data() + d * Z;
      const C dlog = (1 + less[d]) * dot(ds, before + d * Z, Z);
      dgate[d] = static_cast<T>(dlog * decay_slope(static_cast<C>(gate[d]), static_cast<C>(a.power)));
      for (std::int64_t v = 0; v < Z; ++v) ds[v] += less[d] * ds[v];
    }
  }

  const LinearBackwardArgs& back_;
  const LinearArgs& a;
  std::int64_t b_, kv_, Z, size_;
  LinearHead<T> head_;
  std::vector<C> states_, dstate_, query_, dquery_, draw_, dvalue_;
};

}  // namespace

void run(const LinearBackwardArgs& b) {
  const LinearArgs& a = b.forward;
  by_linear_dtype(a.dtype, [&]<class T>() {
    parallel_for(a.B * a.Hkv, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t x = begin; x < end; ++x) BackwardHead<T>(b, x / a.Hkv, x % a.Hkv).run();
    });
  });
}

void run(const SiluGateBackwardArgs& a) {
  by_linear_dtype(a.dtype, [&]<class T>() {
    using C = compute_t<T>;
    const auto at = [](const void* p, std::int64_t i) { return static_cast<C>(static_cast<const T*>(p)[i]); };
    parallel_for(a.n, 16384, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const C dy = at(a.dy, i), g = at(a.gate, i), s = 1 / (1 + std::exp(-g));
        static_cast<T*>(a.dgate)[i] = static_cast<T>(dy * at(a.x, i) * s * (1 + g * (1 - s)));
        static_cast<T*>(a.dx)[i] = static_cast<T>(dy * g * s);
      }
    });
  });
}

void run(const HeadGateBackwardArgs& b) {
  const HeadGateArgs& a = b.forward;
  by_linear_dtype(a.dtype, [&]<class T>() {
    using C = compute_t<T>;
    parallel_for(a.H, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t h = begin; h < end; ++h) {
        const C gate = 1 / (1 + std::exp(-static_cast<C>(static_cast<const T*>(a.gate_H)[h])));
        double sum = 0;
        for (std::int64_t r = 0; r < a.R; ++r) {
          for (std::int64_t i = (r * a.H + h) * a.D; i < (r * a.H + h + 1) * a.D; ++i) {
            const C dout = static_cast<C>(static_cast<const T*>(b.dout_RHD)[i]);
            sum += static_cast<double>(dout * static_cast<C>(static_cast<const T*>(a.x_RHD)[i]));
            static_cast<T*>(b.dx_RHD)[i] = static_cast<T>(gate * dout);
          }
        }
        static_cast<C*>(b.dgate_H)[h] = static_cast<C>(sum) * gate * (1 - gate);
      }
    });
  });
}

}  // namespace sieve::cpu
