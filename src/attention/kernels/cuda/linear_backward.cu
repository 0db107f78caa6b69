// Backward of attention by a recurrence: dq from the states of the keys, dk and dv from the gradients of the states,
// each query head by itself; then the sums over the heads that share a key, and the gates from q dq - k dk: a decay's
// logarithm is seen by every pair around it, so its gradient is the sum of what queries behind it and keys behind it
// have to do with their decays.
#include "attention/kernels/cuda/linear_states.cuh"
#include "attention/kernels/cuda/linear_tensor.h"

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

// A chunk of one feature of a head, walked from its end: visit(position in terms, sum of the terms from there to the
// end of the document, if `carry` is what the next chunk has at its beginning). Returns what the chunk hands to the one
// before.
template <class F>
__device__ float walk_back(const LinearArgs& a, const float* terms, std::int64_t chunk, std::int64_t b, std::int64_t f,
                           float carry, F visit) {
  const std::int64_t end = (chunk + 1) * kLinearChunk < a.T ? (chunk + 1) * kLinearChunk : a.T;
  float sum = carry;
#pragma unroll 4
  for (std::int64_t t = end - 1; t >= chunk * kLinearChunk; --t) {
    const std::int64_t at = (b * a.T + t) * a.Hkv * a.D + f;
    const bool restart = t == 0 || (a.document_starts_BT != nullptr && a.document_starts_BT[b * a.T + t] == t);
    sum = restart ? 0.f : sum + terms[at];  // nothing lies before a start that could decay
    visit(at, sum);
  }
  return sum;
}

// (B, chunks, Hkv D): what each chunk hands on by itself, and whether it lets pass what it is handed.
__global__ void gate_sums(const LinearArgs a, const float* terms, float* sums, float* passes) {
  const std::int64_t each = a.Hkv * a.D, chunks = (a.T + kLinearChunk - 1) / kLinearChunk;
  SIEVE_GRID_STRIDE(x, a.B * chunks * each) {
    const std::int64_t f = x % each, chunk = x / each % chunks, b = x / each / chunks;
    sums[x] = walk_back(a, terms, chunk, b, f, 0.f, [](std::int64_t, float) {});
    bool restart = false;
    for (std::int64_t t = chunk * kLinearChunk; a.document_starts_BT != nullptr && t < a.T && !restart; ++t) {
      if (t == (chunk + 1) * kLinearChunk) break;
      restart = a.document_starts_BT[b * a.T + t] == t;
    }
    passes[x] = restart ? 0.f : 1.f;
  }
}

template <class T>
__global__ void gate_gradient(const LinearArgs a, const float* terms, const float* sums, const float* passes,
                              T* dgates) {
  const std::int64_t each = a.Hkv * a.D, chunks = (a.T + kLinearChunk - 1) / kLinearChunk;
  const auto* const gates = static_cast<const T*>(a.gates_BTHD);
  const float power = static_cast<float>(a.power);
  SIEVE_GRID_STRIDE(x, a.B * chunks * each) {
    const std::int64_t f = x % each, chunk = x / each % chunks, b = x / each / chunks;
    float carry = 0;
#pragma unroll 4
    for (std::int64_t later = chunks - 1; later > chunk; --later) {
      const std::int64_t at = (b * chunks + later) * each + f;
      carry = fmaf(passes[at], carry, sums[at]);
    }
    walk_back(a, terms, chunk, b, f, carry, [&](std::int64_t at, float sum) {
      store(dgates, at, sum * decay_slope(static_cast<float>(load(gates, at)), power));
    });
  }
}

template <class T>
void find_gate_gradients(const LinearBackwardArgs& back, const HeadGradients& g, const Stream& stream) {
  const LinearArgs& a = back.forward;
  const std::int64_t gates = a.B * a.T * a.Hkv * a.D, chunks = a.B * a.chunks() * a.Hkv * a.D;
  const Scratch terms(floats(gates), stream), sums(floats(chunks), stream), passes(floats(chunks), stream);
  start("linear decay terms", decay_terms<T>, blocks_for(gates), kThreads, 0, stream, a, g, terms.as<float>());
  start("linear gate sums", gate_sums, blocks_for(chunks), kThreads, 0, stream, a, terms.as<float>(), sums.as<float>(),
        passes.as<float>());
  start("linear gates", gate_gradient<T>, blocks_for(chunks), kThreads, 0, stream, a, terms.as<float>(),
        sums.as<float>(), passes.as<float>(), static_cast<T*>(back.dgates_BTHD));
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
  if (a.gated()) find_gate_gradients<T>(back, g, stream);
}

}  // namespace

void run(const LinearBackwardArgs& back, Stream stream) {
  const LinearArgs& a = back.forward;
  check_size(a);
  if (a.B * a.T == 0) return;
  if (takes_tensor_cores(back)) return tensor_backward(back, stream);
  a.dtype == DType::bf16 ? backward<bf16>(back, stream) : backward<float>(back, stream);
}

}  // namespace sieve::cuda
