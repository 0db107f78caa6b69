// Forward of attention by a recurrence.
#include "attention/kernels/cuda/linear_states.cuh"
#include "attention/kernels/cuda/linear_tensor.h"

namespace sieve::cuda {
namespace {

using namespace linear;

// out = r / r_last, r (rows, V + 1).
template <class T>
__global__ void normalise(const float* raw, T* out, float* sums, std::int64_t rows, std::int64_t V) {
  SIEVE_GRID_STRIDE(x, rows * V) {
    const std::int64_t row = x / V, v = x % V;
    const float sum = raw[row * (V + 1) + V];
    store(out, x, sum == 0.f ? 0.f : raw[row * (V + 1) + v] / sum);
    if (v == 0 && sums != nullptr) sums[row] = sum;
  }
}

}  // namespace

void run(const LinearArgs& a, Stream stream) {
  check_size(a);
  if (a.B * a.T == 0) return;
  if (takes_tensor_cores(a)) return tensor_forward(a, stream);
  const std::int64_t rows = a.B * a.T * a.H, state_numbers = a.B * a.Hkv * a.chunks() * a.D * a.columns();
  const Scratch own_states(a.chunk_states != nullptr ? 0 : floats(state_numbers), stream);
  const Scratch decay(decays(a) ? floats(a.B * a.Hkv * a.chunks() * a.D) : 0, stream);
  const EventLists events(a, stream);
  const Scratch raw(a.gated() ? 0 : floats(rows * a.columns()), stream);
  auto* const states = a.chunk_states != nullptr ? static_cast<float*>(a.chunk_states) : own_states.as<float>();
  float* const chunk_decays = decays(a) ? decay.as<float>() : nullptr;
  if (chunk_decays != nullptr) find_decays(a, chunk_decays, stream);
  find_states(a, events.view(), states, chunk_decays, stream);
  const Vectors v = vectors_of(a);
  Walk w = by_columns(walk_of(a, a.H, events.view()), a);
  w.a = v.key, w.b = v.value, w.c = v.query, w.less = v.less;
  w.states = states, w.state_group = a.H / a.Hkv;
  w.out = a.gated() ? a.out_BTHV : raw.as<float>();
  w.out_size = static_cast<int>(a.columns()), w.out_is_bf16 = a.gated() && a.dtype == DType::bf16;
  walk_columns<false, true>("linear outputs", w, stream);
  if (a.gated()) return;
  const auto finish = [&]<class T>() {
    start("linear normalise", normalise<T>, blocks_for(rows * a.V), kThreads, 0, stream, raw.as<float>(),
          static_cast<T*>(a.out_BTHV), static_cast<float*>(a.sums_BTH), rows, a.V);
  };
  a.dtype == DType::bf16 ? finish.template operator()<bf16>() : finish.template operator()<float>();
}

}  // namespace sieve::cuda
