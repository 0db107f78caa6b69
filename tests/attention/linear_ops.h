// Gradient checks of attention by recurrences.
#pragma once

#include <vector>

#include "linear_cases.h"
#include "support/op_case.h"

namespace sieve::test {

inline OpSample draw_linear_op(Draw& d, bool gated) {
  LinearCase in;
  in.gated = gated;
  const bool crosses = d.chance(0.04);  // the edge of a chunk
  const std::int64_t Hkv = crosses ? 1 : d.integer(1, 2);
  in.shape = {crosses ? 1 : Hkv * d.integer(1, 2), Hkv, d.integer(1, crosses ? 2 : 4), d.integer(1, crosses ? 2 : 3)};
  in.B = crosses ? 1 : d.extent(2), in.T = crosses ? d.integer(65, 68) : d.extent(9);
  if (d.chance(0.4)) {
    ReferenceInput rows;
    rows.B = in.B, rows.T = in.T;
    fill_documents(rows, d);
    in.starts = rows.document_starts;
  }
  if (!gated && d.chance(0.4)) draw_exits(in, d);
  const Tensor starts = starts_of(in);
  const LinearShape shape = in.shape;
  OpSample sample{.text = describe(in), .inputs = {d.normal({in.B, in.T, shape.features()})}};
  if (gated) {
    sample.inputs.push_back(d.normal({in.B, in.T, shape.Hkv * shape.D}, 3));
    sample.build = [=](const std::vector<Variable>& x) { return gated_linear_attention(x[0], x[1], shape, starts); };
  } else {
    sample.build = [=, exits = exits_of(in)](const std::vector<Variable>& x) {
      return linear_attention(x[0], shape, starts, exits);
    };
  }
  return sample;
}

inline OpSample draw_linear(Draw& d) { return draw_linear_op(d, false); }
inline OpSample draw_gated_linear(Draw& d) { return draw_linear_op(d, true); }

inline OpSample draw_silu_gate(Draw& d) {
  const Shape shape = d.shape(3, 9);
  return {cat(shape),
          {d.normal(shape), d.normal(shape, 3)},
          [](const std::vector<Variable>& x) { return silu_gate(x[0], x[1]); },
          {}};
}

inline OpSample draw_add_gated_heads(Draw& d) {
  const std::int64_t H = d.integer(1, 4);
  const Shape shape{d.extent(3), d.extent(6), H * d.extent(5)};
  return {cat(shape, " ", H),
          {d.normal(shape), d.normal(shape), d.normal({H}, 3)},
          [](const std::vector<Variable>& x) { return add_gated_heads(x[0], x[1], x[2]); },
          {}};
}

}  // namespace sieve::test
