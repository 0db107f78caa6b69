// Gradients of features: dq from the states of the keys, dk and dv from the gradients of the states.
#include "attention/kernels/cuda/linear_states.cuh"

namespace sieve::cuda::linear {

void find_gradients(const LinearArgs& a, const Rows& dr, const HeadGradients& g, const Stream& stream) {
  const Scratch dstates(floats(a.B * a.H * a.chunks() * a.D * a.columns()), stream);
  const Scratch decay(decays(a) ? floats(a.B * a.Hkv * a.chunks() * a.D) : 0, stream);
  const EventLists events(a, stream);
  float* const chunk_decays = decays(a) ? decay.as<float>() : nullptr;
  if (chunk_decays != nullptr) find_decays(a, chunk_decays, stream);
  find_state_gradients(a, events.view(), dr, dstates.as<float>(), chunk_decays, stream);
  if (a.entry_first_BHT != nullptr) {
    const std::int64_t rows = a.B * a.T * a.H;
    check(cudaMemsetAsync(g.dk, 0, floats(rows * a.D), handle_of(stream)), "linear gradients");
    check(cudaMemsetAsync(g.dv, 0, floats(rows * a.V), handle_of(stream)), "linear gradients");
  }
  const Vectors v = vectors_of(a);
  Walk w = by_rows(walk_of(a, a.H, events.view()), a);
  w.less = v.less, w.out_size = static_cast<int>(a.D);
  w.a = v.value, w.b = v.key, w.c = dr, w.out = g.dq;
  w.states = static_cast<float*>(a.chunk_states), w.state_group = a.H / a.Hkv;
  walk_rows<false>("linear dq", w, stream);
  w.a = dr, w.b = v.query, w.c = v.value, w.out = g.dk;
  w.states = dstates.as<float>(), w.state_group = 1;
  walk_rows<true>("linear dk", w, stream);
  w = by_columns(w, a);
  w.own = static_cast<int>(a.V), w.out_size = static_cast<int>(a.V);
  w.a = v.query, w.b = dr, w.c = v.key, w.out = g.dv;
  walk_columns<true, true>("linear dv", w, stream);
}

}  // namespace sieve::cuda::linear
