// What the passes of attention by a recurrence share: the vectors of a problem, its walks, the states between chunks.
#pragma once

#include <cmath>

#include "attention/kernels/cuda/linear_walk.cuh"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda::linear {

struct Vectors {
  Rows query, key, value, less;  // by query head; less: where there are gates
};
Vectors vectors_of(const LinearArgs& a);
Rows each_head(Rows rows);  // by key-value head

// The events of all rows where keys enter late (a.entry_first_BHT), else nothing. Must outlive the walks' launches.
class EventLists {
 public:
  EventLists(const LinearArgs& a, const Stream& stream);
  const Events& view() const { return view_; }

 private:
  Scratch all_;
  Events view_;
};

Walk walk_of(const LinearArgs& a, std::int64_t heads, const Events& events);
Walk by_columns(Walk w, const LinearArgs& a);
Walk by_rows(Walk w, const LinearArgs& a);

// Whether chunks pass on less than they find. If not, `chunk_decays` is null from here on.
bool decays(const LinearArgs& a);
void find_decays(const LinearArgs& a, float* chunk_decays, const Stream& stream);  // (B, Hkv, chunks, D)
// From what each chunk adds, in place: what it finds before it (a.state_BHDV before the first, and replaced), and the
// gradient that it finds at its end, (B, H, chunks, D, columns).
void carry_states(const LinearArgs& a, float* states, const float* chunk_decays, const Stream& stream);
void carry_gradients(const LinearArgs& a, float* states, const float* chunk_decays, const Stream& stream);
// S before each chunk, (B, Hkv, chunks, D, columns), from a.state_BHDV, which becomes the last.
void find_states(const LinearArgs& a, const Events& events, float* states, const float* chunk_decays,
                 const Stream& stream);
// The gradient that each chunk finds at its end, (B, H, chunks, D, columns).
void find_state_gradients(const LinearArgs& a, const Events& events, const Rows& dr, float* states,
                          const float* chunk_decays, const Stream& stream);

// Gradients of features, by query head, fp32: (B, T, H, D), (B, T, H, D), (B, T, H, V).
struct HeadGradients {
  float *dq, *dk, *dv;
};
// From dr, the gradient of r = S^T q: (B, T, H, columns). a.chunk_states: as forward kept them. dk and dv of keys that
// never enter become 0.
void find_gradients(const LinearArgs& a, const Rows& dr, const HeadGradients& g, const Stream& stream);

inline std::size_t floats(std::int64_t n) { return static_cast<std::size_t>(n) * sizeof(float); }

// Error(Exit::config) for sizes and types that these kernels do not take.
void check_size(const LinearArgs& a);

}  // namespace sieve::cuda::linear
