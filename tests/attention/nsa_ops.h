// Op cases of what type nsa has of its own.
#pragma once

#include <vector>

#include "attention/kernels/nsa.h"
#include "attention/nsa.h"
#include "attention_cases.h"
#include "support/op_case.h"

namespace sieve::test {

// Small numbers of compression: l a multiple of s, blocks a multiple of s.
inline PatternSpec draw_compression(Draw& d) {
  PatternSpec p;
  p.compress_stride = d.integer(1, 3), p.compress_block = p.compress_stride * d.integer(1, 3);
  p.block = p.compress_stride * d.integer(1, 3), p.blocks = d.integer(1, 6);
  return p;
}

inline Tensor draw_starts(Draw& d, std::int64_t B, std::int64_t T) {
  ReferenceInput rows;
  rows.B = B, rows.T = T;
  fill_documents(rows, d);
  return starts_view(rows);
}

// Where the inputs are.
inline Tensor starts_beside(const Tensor& starts, const Variable& x) {
  return starts.defined() ? starts.to(x.value().stream()) : starts;
}

inline OpSample draw_join_features(Draw& d) {
  const std::int64_t B = d.extent(3), T = d.extent(6), left = d.extent(9), right = d.extent(9);
  return {cat(B, " ", T, " ", left, " ", right),
          {d.normal({B, T, left}), d.normal({B, T, right})},
          [](const std::vector<Variable>& x) { return join_features(x[0], x[1]); },
          {}};
}

inline OpSample draw_compress_rows(Draw& d) {
  const PatternSpec p = draw_compression(d);
  const std::int64_t B = d.extent(3), T = d.extent(14), H = d.integer(1, 2), D = d.integer(1, 5);
  const Tensor starts = d.chance(0.4) ? draw_starts(d, B, T) : Tensor();
  return {cat(B, " ", T, " ", H, " ", D, " l ", p.compress_block, " s ", p.compress_stride),
          {d.normal({B, T, H * D}), d.normal({p.compress_block, D})},
          [=](const std::vector<Variable>& x) { return compress_rows(x[0], x[1], H, p, starts_beside(starts, x[0])); },
          {}};
}

inline OpSample draw_compressed_attention(Draw& d) {
  AttentionSpec spec;
  spec.kind = AttentionKind::nsa, spec.pattern = draw_compression(d);
  spec.n_kv_heads = d.integer(1, 2), spec.n_heads = spec.n_kv_heads * d.integer(1, 2), spec.head_dim = d.integer(1, 5);
  const bool crosses = d.chance(0.05);  // the edge of a tile
  if (crosses) spec.n_heads = spec.n_kv_heads = 1, spec.head_dim = 2;
  const std::int64_t B = crosses ? 1 : d.extent(2), T = crosses ? d.integer(65, 69) : d.extent(14),
                     M = compressed_count(T, spec.pattern.compress_block, spec.pattern.compress_stride);
  const Tensor starts = d.chance(0.4) ? draw_starts(d, B, T) : Tensor();
  const std::int64_t N = starts.defined() || d.chance(0.6) ? T : d.integer(0, T), D = spec.head_dim;
  const Shape keys{B, spec.n_kv_heads, M, D};
  return {cat(B, " ", N, " of ", T, " ", spec.n_heads, "/", spec.n_kv_heads, " ", D, " M ", M),
          {d.normal({B, N, spec.n_heads * D}), d.normal(keys), d.normal(keys)},
          [=](const std::vector<Variable>& x) {
            return compressed_attention(x[0], x[1], x[2], spec, T, starts_beside(starts, x[0]));
          },
          {}};
}

inline OpSample draw_gate_branches(Draw& d) {
  const std::int64_t B = d.extent(2), T = d.extent(6), H = d.integer(1, 4), D = d.integer(1, 9);
  const Shape shape{B, T, H * D};
  return {cat(shape, " ", H),
          {d.normal(shape), d.normal(shape), d.normal(shape), d.normal({B, T, 3 * H}, 3)},
          [=](const std::vector<Variable>& x) { return gate_branches(x[0], x[1], x[2], x[3], H); },
          {}};
}

inline std::vector<OpCase> nsa_op_cases() {
  return {{.name = "join_features", .draw = draw_join_features},
          {.name = "compress_rows", .draw = draw_compress_rows},
          {.name = "compressed_attention", .draw = draw_compressed_attention},
          {.name = "gate_branches", .draw = draw_gate_branches}};
}

}  // namespace sieve::test
