// Attention by a recurrence instead of a softmax: linear attention, gated linear attention, and the linear state of
// SparseK's evicted keys (docs/attention.md). Queries and keys are taken as they come: who wants them turned by their
// positions does it before (attention/rotate.h). Letters: B batch, T time, H query heads, Hkv key-value heads, Hs score
// heads, D features of a query or key, V of a value.
#pragma once

#include <cstdint>

#include "autograd/variable.h"

namespace sieve {

// From which query on SparseK shows a key no more: not in the window, not selected, never to return.
struct KeyExits {
  Tensor first;  // i32 (B, Hs, T + 1): query i is the first without keys[first[i] .. first[i + 1])
  Tensor keys;   // i32 (B, Hs, T), by exit, then by position; entries from first[T] on are not used
};
// from, to (B, Hs, T): attention/kernels/select.h. A selected key leaves at its `to`, no key before it leaves the
// window; those that see their document's end never leave. document_starts as in AttentionInputs.
KeyExits key_exits(const Tensor& from, const Tensor& to, std::int64_t window, const Tensor& document_starts);

struct LinearShape {
  std::int64_t H = 0, Hkv = 0, D = 0, V = 0;
  std::int64_t features() const { return (H + Hkv) * D + Hkv * V; }
};

// Linear attention with the feature map elu + 1 (Katharopoulos et al. 2020, arXiv 2006.16236): out_i = S_i^T phi(q_i) /
// z_i^T phi(q_i). qkv (B, T, features) -> (B, T, H V). document_starts: the state restarts; as in AttentionInputs.
// exits: a key enters the state at its exit instead of its own position; out is 0 while none has.
Variable linear_attention(const Variable& qkv, const LinearShape& shape, const Tensor& document_starts,
                          const KeyExits& exits = {});

inline constexpr double kGatePower = 1.0 / 16;
// Gated linear attention (Yang et al. 2023, arXiv 2312.06635): S_i = diag(alpha_i) S_{i-1} + k_i v_i^T, out_i = S_i^T
// q_i / sqrt(D), alpha = sigmoid(gates)^(1/16). qkv (B, T, features), gates (B, T, Hkv D) -> (B, T, H V).
Variable gated_linear_attention(const Variable& qkv, const Variable& gates, const LinearShape& shape,
                                const Tensor& document_starts);

// A state carried from one block of positions to the next, for generation: (B, Hkv, D, V + 1), linear, or (B, Hkv, D,
// V), gated, fp32 (fp64 for fp64); undefined before the first block. No gradient.
Tensor linear_attention_extend(const Tensor& qkv, const LinearShape& shape, const KeyExits& exits, Tensor& state);
Tensor gated_linear_attention_extend(const Tensor& qkv, const Tensor& gates, const LinearShape& shape, Tensor& state);

Variable silu_gate(const Variable& x, const Variable& gate);  // x silu(gate), same shapes
// base + sigmoid(gate_h) x: base, x (B, T, H D), gate (H) of the same dtype -> (B, T, H D).
Variable add_gated_heads(const Variable& base, const Variable& x, const Variable& gate);

}  // namespace sieve
