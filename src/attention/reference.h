// The oracle: attention straight from the definitions in fp64, O(T^2) memory and worse time, for tests. Every prefix is
// sorted anew, every mask is dense, nothing is shared with the engine or with the selection kernels. Letters: B batch,
// T time, H query heads, Hkv key-value heads, Hs score heads, D head size.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/spec.h"

namespace sieve {

struct ReferenceInput {
  AttentionSpec spec;
  RopeSpec rope;
  std::int64_t B = 1, T = 0;
  std::int64_t score_heads = 0;               // Hs: n_kv_heads or 1 (SparseK)
  std::vector<double> qkv;                    // (B, T, (H + 2 Hkv) D), not rotated
  std::vector<double> scores;                 // (B, Hs, T) (SparseK)
  std::vector<std::int32_t> document_starts;  // (B, T), or empty: one document a row
};

// What a query sees in one selection head: dense (B, Hs, T, T), row = query, column = key.
struct ReferenceMasks {
  std::vector<std::uint8_t> window;    // spans: causal, window, sinks
  std::vector<std::uint8_t> selected;  // top k of the candidates, without keys the window already shows
  std::vector<std::uint8_t> band;      // in the pool and 0 < z_j - tau_i < 1
  std::vector<double> gate;            // m_ij = clip(z_j - tau_i, 0, 1) of every candidate in the pool
  std::vector<double> tau;             // (B, Hs, T); -infinity with at most k candidates
  std::vector<double> band_margin;     // (B, Hs, T): distance of the nearest score from an end of the band, a kink
  std::vector<double> cut_margin;      // (B, Hs, T): gap between the last member (of top k, of the pool) and the next
};
ReferenceMasks reference_masks(const ReferenceInput& in);

struct ReferenceGradients {
  std::vector<double> qkv;     // like the input
  std::vector<double> scores;  // like the input
};
std::vector<double> reference_forward(const ReferenceInput& in);  // (B, T, H D)
// The formulas of docs/attention.md, "Gates", one (query, key) pair after the other. dout (B, T, H D).
ReferenceGradients reference_backward(const ReferenceInput& in, const std::vector<double>& dout);

}  // namespace sieve
