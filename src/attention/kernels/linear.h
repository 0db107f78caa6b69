// The compute ABI of attention by a recurrence: a state S (D, columns) a key-value head that keys enter and queries
// read (docs/attention.md, "Linear attention", "Gated linear attention", "SparseK with a linear state").
//
//   S_i = diag(alpha_i) S_{i-1} + sum of key_j value_j^T over the keys j that enter at i,     S = 0 before a document
//   linear: alpha = 1, query = elu(q) + 1, key = elu(k) + 1, value = [v, 1];  out_i = r_v / r_last, r = S_i^T query_i
//   gated:  alpha = sigmoid(gate)^power, query = q / sqrt(D), key = k, value = v;  out_i = S_i^T query_i
//
// Plain pointers, row-major and contiguous. Letters: B batch, T time, H query heads, Hkv key-value heads (query head h
// reads head h / (H / Hkv)), Hs heads of entry lists (Hkv or 1), D features of a query or key, V of a value.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "tensor/dispatch.h"

namespace sieve {

inline constexpr std::int64_t kLinearChunk = 64;  // positions from one kept state to the next

template <class C>
SIEVE_HD inline C elu_feature(C x) {
  return x > 0 ? x + 1 : std::exp(x);
}
template <class C>
SIEVE_HD inline C elu_slope(C x) {
  return x > 0 ? C(1) : std::exp(x);
}
// alpha - 1 of a gate's logit: near 1 the difference keeps the bits that alpha itself would lose.
template <class C>
SIEVE_HD inline C decay_less_one(C gate, C power) {
  const C size = gate < 0 ? -gate : gate;
  return std::expm1(-power * ((gate < 0 ? size : C(0)) + std::log1p(std::exp(-size))));
}
// d log alpha / d gate.
template <class C>
SIEVE_HD inline C decay_slope(C gate, C power) {
  return power / (1 + std::exp(gate));
}

struct LinearArgs : KernelArgs {
  const void* qkv_BTF = nullptr;                     // H heads of D, Hkv of D, Hkv of V
  const void* gates_BTHD = nullptr;                  // (B, T, Hkv, D) logits; null: linear
  const std::int32_t* document_starts_BT = nullptr;  // null: one document a row
  const std::int32_t* entry_first_BHT = nullptr;     // (B, Hs, T + 1); null: key i enters at query i
  const std::int32_t* entry_keys_BHT = nullptr;      // (B, Hs, T): at i enter the keys from entry_first[i] on
  std::int64_t B = 0, T = 0, H = 0, Hkv = 0, Hs = 0, D = 0, V = 0;
  double power = 1;
  DType dtype = DType::f32;
  void* out_BTHV = nullptr;
  // fp32 (fp64 for fp64) from here on.
  void* sums_BTH = nullptr;      // linear: what out was divided by; 0 where no key entered, and out is 0 there
  void* chunk_states = nullptr;  // (B, Hkv, chunks, D, columns): S before each chunk, for backward; may be null
  void* state_BHDV = nullptr;    // (B, Hkv, D, columns): S before the first position, replaced by that after the last;
                                 // null: 0

  SIEVE_HD bool gated() const { return gates_BTHD != nullptr; }
  SIEVE_HD std::int64_t columns() const { return gated() ? V : V + 1; }
  SIEVE_HD std::int64_t chunks() const { return (T + kLinearChunk - 1) / kLinearChunk; }
  SIEVE_HD std::int64_t features() const { return (H + Hkv) * D + Hkv * V; }
};

// forward: as it ran, with sums and chunk_states kept; state must be null.
struct LinearBackwardArgs : KernelArgs {
  LinearArgs forward;
  const void* dout_BTHV = nullptr;
  void* dqkv_BTF = nullptr;     // overwritten
  void* dgates_BTHD = nullptr;  // overwritten; gated
};

// y = x silu(gate), and its gradients.
struct SiluGateArgs : KernelArgs {
  const void* x = nullptr;
  const void* gate = nullptr;
  void* y = nullptr;
  std::int64_t n = 0;
  DType dtype = DType::f32;
};
struct SiluGateBackwardArgs : KernelArgs {
  const void* dy = nullptr;
  const void* x = nullptr;
  const void* gate = nullptr;
  void* dx = nullptr;
  void* dgate = nullptr;
  std::int64_t n = 0;
  DType dtype = DType::f32;
};

// out = base + sigmoid(gate_h) x, rows of H heads of D.
struct HeadGateArgs : KernelArgs {
  const void* base_RHD = nullptr;
  const void* x_RHD = nullptr;
  const void* gate_H = nullptr;
  void* out_RHD = nullptr;
  std::int64_t R = 0, H = 0, D = 0;
  DType dtype = DType::f32;
};
struct HeadGateBackwardArgs : KernelArgs {
  HeadGateArgs forward;
  const void* dout_RHD = nullptr;
  void* dx_RHD = nullptr;
  void* dgate_H = nullptr;  // fp32 (fp64 for fp64)
};

// When SparseK drops each key for good, as entry lists: key j at max(j + window, its `to`), unless its document ends
// before. from, to: kernels/select.h; of their keys at most one leaves the selection at a query.
struct KeyExitArgs : KernelArgs {
  const std::int32_t* from_BHT = nullptr;
  const std::int32_t* to_BHT = nullptr;
  const std::int32_t* document_starts_BT = nullptr;  // null: one document a row
  std::int64_t B = 0, H = 0, T = 0, window = 0;
  std::int32_t* first_BHT = nullptr;  // (B, H, T + 1)
  std::int32_t* keys_BHT = nullptr;   // by exit, then by position; entries from first[T] on are not written
};

// Row `row` of a cache's head kv becomes key and value of token `to` of batch row b.
struct EvictedRow {
  std::int32_t b, kv, row, to;
};
// Rows that leave a cache on their way to the linear state, as tokens of qkv; keys that lie rotated are turned back. No
// two rows become the same key.
struct EvictedRowArgs : KernelArgs {
  const EvictedRow* rows = nullptr;
  std::int64_t count = 0;
  const void* keys_BKCD = nullptr;  // (B, Hkv, capacity, D)
  const void* values_BKCD = nullptr;
  void* qkv_BNF = nullptr;  // (B, N, (H + 2 Hkv) D)
  std::int64_t N = 0, H = 0, Hkv = 0, D = 0, capacity = 0;
  DType dtype = DType::f32;
  std::int64_t rotary_dims = 0;  // 0: keys lie as they came
  const void* cos_XR = nullptr;  // (count, rotary_dims / 2) of the rows' positions, in the compute dtype
  const void* sin_XR = nullptr;
};

namespace cpu {
void run(const LinearArgs& a);
void run(const LinearBackwardArgs& a);
void run(const SiluGateArgs& a);
void run(const SiluGateBackwardArgs& a);
void run(const HeadGateArgs& a);
void run(const HeadGateBackwardArgs& a);
void run(const KeyExitArgs& a);
void run(const EvictedRowArgs& a);
}  // namespace cpu
namespace cuda {
void run(const LinearArgs& a, Stream stream);
void run(const LinearBackwardArgs& a, Stream stream);
void run(const SiluGateArgs& a, Stream stream);
void run(const SiluGateBackwardArgs& a, Stream stream);
void run(const HeadGateArgs& a, Stream stream);
void run(const HeadGateBackwardArgs& a, Stream stream);
void run(const KeyExitArgs& a, Stream stream);
void run(const EvictedRowArgs& a, Stream stream);
}  // namespace cuda

}  // namespace sieve
