// One op_case for every differentiable op of src/attention (its registry.h lists the names).
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "attention/registry.h"
#include "attention/timestep_norm.h"
#include "attention_cases.h"
#include "choice_ops.h"
#include "linear_ops.h"
#include "nsa_ops.h"
#include "support/op_case.h"

namespace sieve::test {

inline std::span<const std::string_view> attention_ops() { return kAttentionOps; }

// Distance of the nearest kink in the scores: where finite differences would look around a corner.
inline double kink_distance(const ReferenceInput& in) {
  const ReferenceMasks masks = reference_masks(in);
  double least = std::numeric_limits<double>::infinity();
  for (double m : masks.band_margin) least = std::min(least, m);
  for (double m : masks.cut_margin) least = std::min(least, m);
  return least;
}

// Small problems, a few of which cross the edge of a tile, with scores away from kinks.
inline ReferenceInput draw_smooth_input(Draw& d) {
  for (;;) {
    ReferenceInput in = draw_input(d, 18, "normal");
    if (in.T < 18 && d.chance(0.04)) {  // 65 .. 70 positions of one small head
      in.T = d.integer(65, 70);
      in.B = 1;
      in.spec.n_heads = in.spec.n_kv_heads = in.score_heads = 1;
      in.spec.head_dim = 2;
      in.rope.rotary_dims = std::min<std::int64_t>(in.rope.rotary_dims, 2);
      in.document_starts.clear();
      fill_values(in, d, "normal");
    }
    in.spec.head_dim = std::min<std::int64_t>(in.spec.head_dim, 4);
    in.rope.rotary_dims = std::min(in.rope.rotary_dims, in.spec.head_dim / 2 * 2);
    if (in.T < 65 && in.B * in.T * in.spec.qkv_features() > 400) continue;  // every element costs two forwards
    if (d.chance(0.6)) {                                                    // a selection that is busy on few positions
      in.spec.window = std::min<std::int64_t>(in.spec.window, 3);
      in.spec.sparsek.k = std::min<std::int64_t>(in.spec.sparsek.k, 3);
    }
    fill_values(in, d, "normal");
    if (in.spec.kind != AttentionKind::sparsek || kink_distance(in) > 2e-4) return in;
  }
}

inline OpSample draw_attention(Draw& d) {
  ReferenceInput in = draw_smooth_input(d);
  const bool sparse = in.spec.kind == AttentionKind::sparsek;
  const bool documents = !in.document_starts.empty();
  if (d.chance(0.06)) {
    (d.chance(0.5) ? in.B : in.T) = 0;
    in.qkv.clear();
    in.scores.clear();
    in.document_starts.clear();
  }
  OpSample sample{.text = describe(in)};
  sample.inputs.push_back(tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, DType::f64));
  AttentionInputs how = inputs_of(in);
  if (documents) how.document_starts = starts_view(in);
  const Tensor scores = sparse ? tensor_of(in.scores, {in.B, in.score_heads, in.T}, DType::f64) : Tensor();
  // The gradient of a hard gate's score is a straight-through estimate: not the derivative of anything. A test of its
  // own compares it with the oracle.
  const bool leaf_scores = sparse && in.spec.sparsek.gate != GateMode::hard;
  if (leaf_scores) sample.inputs.push_back(scores);
  sample.build = [=](const std::vector<Variable>& x) {
    return attention(x[0], leaf_scores ? x[1] : scores.defined() ? Variable(scores) : Variable(), how);
  };
  return sample;
}

inline OpSample draw_timestep_norm(Draw& d) {
  const std::int64_t B = d.extent(3), H = d.extent(3), T = d.extent(20);
  ReferenceInput in;
  in.B = B, in.T = T;
  Tensor starts;
  if (d.chance(0.5)) {
    fill_documents(in, d);
    starts = starts_view(in);
  }
  return {cat(B, " ", H, " ", T),
          {d.normal({B, H, T}), d.normal({H})},
          [=](const std::vector<Variable>& x) { return timestep_norm(x[0], x[1], starts); },
          {}};
}

// A small pattern that looks at positions alone; those that choose by content are compared with their oracle.
inline AttentionSpec draw_static_pattern(Draw& d) {
  AttentionSpec spec;
  const AttentionKind kinds[] = {AttentionKind::strided, AttentionKind::fixed, AttentionKind::longformer,
                                 AttentionKind::bigbird};
  spec.kind = kinds[d.integer(0, 3)];
  PatternSpec& p = spec.pattern;
  p.stride = d.integer(1, 6), p.summary = d.integer(1, p.stride);
  p.part = static_cast<PatternPart>(d.integer(0, 2));
  p.dilation = d.integer(1, 3), p.globals = d.integer(0, 3), spec.window = d.integer(1, 5);
  p.block = d.integer(1, 4), p.global_blocks = d.integer(0, 2), p.window_blocks = d.integer(1, 2);
  p.random_blocks = d.integer(0, 2), p.seed = static_cast<std::uint64_t>(d.integer(0, 9));
  return spec;
}

inline OpSample draw_pattern(Draw& d) {
  const AttentionSpec drawn = draw_static_pattern(d);
  ReferenceInput in;
  in.B = d.extent(2), in.T = d.extent(20);
  in.spec = drawn;
  in.spec.n_kv_heads = d.integer(1, 2), in.spec.n_heads = in.spec.n_kv_heads * d.integer(1, 2);
  in.spec.head_dim = 2 * d.integer(1, 2);
  in.rope.rotary_dims = d.chance(0.5) ? in.spec.head_dim : 0;
  AttentionInputs how{.spec = in.spec, .rope = in.rope, .document_starts = {}};
  if (d.chance(0.4)) {
    fill_documents(in, d);
    how.document_starts = starts_view(in);
  }
  return {cat(kAttentionKindNames[static_cast<std::size_t>(in.spec.kind)], " ", in.B, " ", in.T),
          {d.normal({in.B, in.T, in.spec.qkv_features()})},
          [=](const std::vector<Variable>& x) { return attention(x[0], {}, how); },
          {}};
}

inline std::vector<OpCase> attention_op_cases() {
  std::vector<OpCase> cases = {{.name = "attention", .draw = draw_attention, .low_precision = false},
                               {.name = "pattern_attention", .draw = draw_pattern, .low_precision = false},
                               {.name = "timestep_norm", .draw = draw_timestep_norm, .low_precision = false},
                               {.name = "linear_attention", .draw = draw_linear, .low_precision = false},
                               {.name = "gated_linear_attention", .draw = draw_gated_linear, .low_precision = false},
                               {.name = "silu_gate", .draw = draw_silu_gate, .low_precision = false},
                               {.name = "add_gated_heads", .draw = draw_add_gated_heads, .low_precision = false}};
  for (OpCase& more : choice_op_cases()) cases.push_back(std::move(more));
  for (OpCase& more : nsa_op_cases()) cases.push_back(std::move(more));
  return cases;
}

}  // namespace sieve::test
