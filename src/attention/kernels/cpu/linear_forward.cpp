// Forward: one task a key-value head of a row, its state in the cache of a core.
#include "attention/kernels/cpu/linear_head.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

// out_t of query head g from S_t; `raw` (columns) is scratch.
template <class T>
void read_state(LinearHead<T>& head, std::int64_t b, std::int64_t t, std::int64_t g, const compute_t<T>* state,
                compute_t<T>* query, compute_t<T>* raw) {
  using C = compute_t<T>;
  const LinearArgs& a = head.a;
  const std::int64_t Z = a.columns(), row = (b * a.T + t) * a.H + head.head(g);
  head.query(t, g, query);
  std::fill_n(raw, Z, C(0));
  for (std::int64_t d = 0; d < a.D; ++d) add_scaled(query[d], state + d * Z, raw, Z);
  C factor = 1;
  if (!a.gated()) {
    const C sum = raw[a.V];
    factor = sum == 0 ? C(0) : 1 / sum;
    if (a.sums_BTH != nullptr) static_cast<C*>(a.sums_BTH)[row] = sum;
  }
  T* out = static_cast<T*>(a.out_BTHV) + row * a.V;
  for (std::int64_t v = 0; v < a.V; ++v) out[v] = static_cast<T>(factor * raw[v]);
}

template <class T>
void forward_head(const LinearArgs& a, std::int64_t b, std::int64_t kv) {
  using C = compute_t<T>;
  LinearHead<T> head(a, b, kv);
  const std::int64_t size = a.D * a.columns(), row = b * a.Hkv + kv;
  std::vector<C> state(static_cast<std::size_t>(size)), query(static_cast<std::size_t>(a.D)),
      raw(static_cast<std::size_t>(a.columns()));
  C* carried = a.state_BHDV ? static_cast<C*>(a.state_BHDV) + row * size : nullptr;
  if (carried != nullptr) std::copy_n(carried, size, state.data());
  for (std::int64_t t = 0; t < a.T; ++t) {
    if (a.chunk_states != nullptr && t % kLinearChunk == 0)
      std::copy_n(state.data(), size, static_cast<C*>(a.chunk_states) + (row * a.chunks() + t / kLinearChunk) * size);
    head.advance(t, state.data());
    for (std::int64_t g = 0; g < head.group(); ++g) read_state(head, b, t, g, state.data(), query.data(), raw.data());
  }
  if (carried != nullptr) std::copy_n(state.data(), size, carried);
}

}  // namespace

void run(const LinearArgs& a) {
  by_linear_dtype(a.dtype, [&]<class T>() {
    parallel_for(a.B * a.Hkv, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t x = begin; x < end; ++x) forward_head<T>(a, x / a.Hkv, x % a.Hkv);
    });
  });
}

void run(const SiluGateArgs& a) {
  by_linear_dtype(a.dtype, [&]<class T>() {
    using C = compute_t<T>;
    parallel_for(a.n, 16384, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const C x = static_cast<C>(static_cast<const T*>(a.x)[i]), g = static_cast<C>(static_cast<const T*>(a.gate)[i]);
        static_cast<T*>(a.y)[i] = static_cast<T>(x * g / (1 + std::exp(-g)));
      }
    });
  });
}

void run(const HeadGateArgs& a) {
  by_linear_dtype(a.dtype, [&]<class T>() {
    using C = compute_t<T>;
    parallel_for(a.R * a.H, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const C gate = 1 / (1 + std::exp(-static_cast<C>(static_cast<const T*>(a.gate_H)[row % a.H])));
        for (std::int64_t i = row * a.D; i < (row + 1) * a.D; ++i)
          static_cast<T*>(a.out_RHD)[i] = static_cast<T>(static_cast<C>(static_cast<const T*>(a.base_RHD)[i]) +
                                                         gate * static_cast<C>(static_cast<const T*>(a.x_RHD)[i]));
      }
    });
  });
}

}  // namespace sieve::cpu
