// Backward of attention by a recurrence: dq from the states of the keys, dk and dv from the gradients of the states,
// each query head by itself; then the sums over the heads that share a key, and the gates from q dq - k dk: a decay's
// logarithm is seen by every pair around it, so its gradient is the sum of what queries behind it and keys behind it
// have to do with their decays.
#include "attention/kernels/cuda/linear_states.cuh"

namespace sieve::cuda {
namespace {

using namespace linear;

// dr (rows, V + 1) from dout and out: dout / sum, and -(dout . out) / sum. A warp takes a row.
template <class T>
__global__ void raw_gradient(const T* dout, const T* out, const float* sums, float* dr, std::int64_t rows,
                             std::int64_t V) {
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (row >= rows) return;  // whole warps leave
  const float sum = sums[row], factor = sum == 0.f ? 0.f : 1 / sum;
  float dot = 0;
  for (std::int64_t v = threadIdx.x % 32; v < V; v += 32) {
    const float g = factor * load(dout, row * V + v);
    dr[row * (V + 1) + v] = g;
    dot += g * load(out, row * V + v);
  }
  dot = warp_sum(dot);
  if (threadIdx.x % 32 == 0) dr[row * (V + 1) + V] = -dot;
}

template <class T>
__global__ void finish(const LinearArgs a, const HeadGradients g, T* dqkv) {
  const std::int64_t F = a.features(), G = a.H / a.Hkv;
  const auto* const qkv = static_cast<const T*>(a.qkv_BTF);
  const float scale = 1 / sqrtf(static_cast<float>(a.D));
  SIEVE_GRID_STRIDE(x, a.B * a.T * F) {
    const std::int64_t row = x / F, f = x % F, key = f - a.H * a.D, value = key - a.Hkv * a.D;
    float sum = 0;
    if (key < 0) {
      sum = g.dq[row * a.H * a.D + f] * (a.gated() ? scale : elu_slope(load(qkv, x)));
    } else if (value < 0) {
      for (std::int64_t h = key / a.D * G; h < (key / a.D + 1) * G; ++h) sum += g.dk[(row * a.H + h) * a.D + key % a.D];
      if (!a.gated()) sum *= elu_slope(load(qkv, x));
    } else {
      for (std::int64_t h = value / a.V * G; h < (value / a.V + 1) * G; ++h)
        sum += g.dv[(row * a.H + h) * a.V + value % a.V];
    }
    store(dqkv, x, sum);
  }
}

// What the decays at position t gain from q_t and k_t.
template <class T>
__global__ void decay_terms(const LinearArgs a, const HeadGradients g, float* terms) {
  const std::int64_t F = a.features(), G = a.H / a.Hkv;
  const auto* const qkv = static_cast<const T*>(a.qkv_BTF);
  const float scale = 1 / sqrtf(static_cast<float>(a.D));
  SIEVE_GRID_STRIDE(x, a.B * a.T * a.Hkv * a.D) {
    const std::int64_t d = x % a.D, kv = x / a.D % a.Hkv, row = x / a.D / a.Hkv;
    const float k = load(qkv, row * F + (a.H + kv) * a.D + d);
    float sum = 0;
    for (std::int64_t h = kv * G; h < (kv + 1) * G; ++h) {
      const std::int64_t at = (row * a.H + h) * a.D + d;
      sum += scale * load(qkv, row * F + h * a.D + d) * g.dq[at] - k * g.dk[at];
    }
    terms[x] = sum;
  }
}

// Sums of the terms from each position to the end of its document. A thread takes a feature of a head.
template <class T>
__global__ void gate_gradient(const LinearArgs a, const float* terms, T* dgates) {
  const std::int64_t each = a.Hkv * a.D;
  const auto* const gates = static_cast<const T*>(a.gates_BTHD);
  SIEVE_GRID_STRIDE(x, a.B * each) {
    const std::int64_t b = x / each, f = x % each;
    float sum = 0;
#pragma unroll 8
    for (std::int64_t t = a.T - 1; t >= 0; --t) {
      const std::int64_t at = (b * a.T + t) * each + f;
      const bool restart = t == 0 || (a.document_starts_BT != nullptr && a.document_starts_BT[b * a.T + t] == t);
      sum += terms[at];
      if (restart) sum = 0;  // nothing lies before it that could decay
      store(dgates, at, sum * decay_slope(static_cast<float>(load(gates, at)), static_cast<float>(a.power)));
    }
  }
}

template <class T>
void backward(const LinearBackwardArgs& back, const Stream& stream) {
  const LinearArgs& a = back.forward;
  const std::int64_t rows = a.B * a.T * a.H;
  const Scratch raw(a.gated() ? 0 : floats(rows * a.columns()), stream), dq(floats(rows * a.D), stream),
      dk(floats(rows * a.D), stream), dv(floats(rows * a.V), stream);
  const HeadGradients g{dq.as<float>(), dk.as<float>(), dv.as<float>()};
  Rows dr{.data = back.dout_BTHV,
          .stride = a.H * a.columns(),
          .first = 0,
          .head_stride = a.columns(),
          .size = static_cast<int>(a.columns()),
          .is_bf16 = a.dtype == DType::bf16};
  if (!a.gated()) {
    dr.data = raw.as<float>(), dr.is_bf16 = false;
    start("linear raw gradient", raw_gradient<T>, (rows * 32 + kThreads - 1) / kThreads, kThreads, 0, stream,
          static_cast<const T*>(back.dout_BTHV), static_cast<const T*>(a.out_BTHV),
          static_cast<const float*>(a.sums_BTH), raw.as<float>(), rows, a.V);
  }
  find_gradients(a, dr, g, stream);
  start("linear finish", finish<T>, blocks_for(a.B * a.T * a.features()), kThreads, 0, stream, a, g,
        static_cast<T*>(back.dqkv_BTF));
  if (!a.gated()) return;
  const std::int64_t gates = a.B * a.T * a.Hkv * a.D;
  const Scratch terms(floats(gates), stream);
  start("linear decay terms", decay_terms<T>, blocks_for(gates), kThreads, 0, stream, a, g, terms.as<float>());
  start("linear gates", gate_gradient<T>, blocks_for(a.B * a.Hkv * a.D), kThreads, 0, stream, a, terms.as<float>(),
        static_cast<T*>(back.dgates_BTHD));
}

}  // namespace

void run(const LinearBackwardArgs& back, Stream stream) {
  const LinearArgs& a = back.forward;
  check_size(a);
  if (a.B * a.T == 0) return;
  a.dtype == DType::bf16 ? backward<bf16>(back, stream) : backward<float>(back, stream);
}

}  // namespace sieve::cuda
