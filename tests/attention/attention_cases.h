// Random attention problems that the engine's and the cache's tests share, and how to run them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "attention/reference.h"
#include "autograd/variable.h"
#include "core/error.h"
#include "score_cases.h"
#include "support/draw.h"

namespace sieve::test {

inline AttentionSpec make_spec(AttentionKind kind, std::int64_t H, std::int64_t Hkv, std::int64_t D) {
  AttentionSpec spec;
  spec.kind = kind;
  spec.n_heads = H;
  spec.n_kv_heads = Hkv;
  spec.head_dim = D;
  return spec;
}

inline std::string describe(const ReferenceInput& in) {
  const AttentionSpec& a = in.spec;
  const SparsekSpec& s = a.sparsek;
  return cat(kAttentionKindNames[static_cast<int>(a.kind)], " B", in.B, " T", in.T, " H", a.n_heads, "/", a.n_kv_heads,
             " D", a.head_dim, " W", a.window, " sinks", a.sinks, " k", s.k, " ",
             kGateModeNames[static_cast<int>(s.gate)], " ", kCandidatesNames[static_cast<int>(s.candidates)], " ",
             kPositionRuleNames[static_cast<int>(s.positions)], s.clamp_distance, " pool", s.pool, " slope", s.slope,
             " temperature", s.temperature, " Hs", in.score_heads, " rotary", in.rope.rotary_dims,
             in.document_starts.empty() ? "" : " documents");
}

// Values of q, k, v and scores are multiples of 2^-6 or fp32, so that fp64, fp32 and (q, k, v) bf16 runs see the same
// numbers.
inline void fill_values(ReferenceInput& in, Draw& d, const std::string& score_kind) {
  const std::int64_t n = in.B * in.T * in.spec.qkv_features();
  in.qkv.clear();
  for (std::int64_t x = 0; x < n; ++x) {
    const double sum = d.uniform() + d.uniform() + d.uniform() + d.uniform() - 2;
    in.qkv.push_back(static_cast<double>(static_cast<float>(bf16(static_cast<float>(2 * sum)))));
  }
  in.scores.clear();
  if (in.spec.kind != AttentionKind::sparsek) return;
  for (std::int64_t x = 0; x < in.B * in.score_heads; ++x) {
    const auto s = make_scores(score_kind, in.T, static_cast<std::uint64_t>(d.integer(0, 1 << 30)));
    in.scores.insert(in.scores.end(), s.begin(), s.end());
  }
}

inline void fill_documents(ReferenceInput& in, Draw& d) {
  in.document_starts.clear();
  for (std::int64_t b = 0; b < in.B; ++b) {
    std::int32_t start = 0;
    const double ends = d.chance(0.5) ? 0.02 : 0.15;
    for (std::int64_t t = 0; t < in.T; ++t) {
      if (t > 0 && d.chance(ends)) start = static_cast<std::int32_t>(t);
      in.document_starts.push_back(start);
    }
  }
}

// Any pattern; T up to `longest`.
inline ReferenceInput draw_input(Draw& d, std::int64_t longest, const std::string& score_kind) {
  ReferenceInput in;
  const std::int64_t Hkv = d.integer(1, 3), G = d.chance(0.5) ? 1 : d.integer(2, 3);
  constexpr std::int64_t kSizes[] = {1, 4, 6, 8, 16, 20, 24, 32, 34};
  const auto kind =
      d.chance(0.15) ? AttentionKind::full : (d.chance(0.25) ? AttentionKind::sliding_window : AttentionKind::sparsek);
  in.spec = make_spec(kind, Hkv * G, Hkv, kSizes[d.integer(0, 8)]);
  in.B = d.chance(0.7) ? 1 : 2;
  in.T = d.chance(0.3) ? d.integer(1, 9) : d.integer(1, longest);
  in.spec.window = d.chance(0.2) ? 1 : (d.chance(0.5) ? d.integer(2, 12) : d.integer(1, in.T + 3));
  in.spec.sinks = kind == AttentionKind::sliding_window && d.chance(0.6) ? d.integer(1, 8) : 0;
  if (d.chance(0.7)) in.rope.rotary_dims = 2 * d.integer(1, std::max<std::int64_t>(1, in.spec.head_dim / 2));
  if (in.spec.head_dim == 1) in.rope.rotary_dims = 0;
  in.rope.theta = d.chance(0.5) ? 10000 : 100;
  in.score_heads = d.chance(0.5) ? Hkv : 1;
  SparsekSpec& s = in.spec.sparsek;
  s.k = d.chance(0.2) ? 1 : d.integer(1, d.chance(0.5) ? 12 : in.T + 2);
  s.gate = static_cast<GateMode>(d.integer(0, 3));
  s.candidates = static_cast<Candidates>(d.integer(0, 1));
  s.positions = static_cast<PositionRule>(d.integer(0, 2));
  s.clamp_distance = d.integer(1, in.T + 2);
  s.pool = d.chance(0.4) ? 0 : d.integer(s.gate == GateMode::hard ? 1 : 2, 4);
  s.slope = d.chance(0.5) ? 0 : 0.01 * d.uniform();
  s.temperature = d.chance(0.5) ? 1 : 0.25 + 2 * d.uniform();
  if (d.chance(0.35)) fill_documents(in, d);
  fill_values(in, d, score_kind);
  return in;
}

inline Tensor tensor_of(const std::vector<double>& values, const Shape& shape, DType dtype) {
  return from_values<double>(values, shape).to(dtype);
}

// document_starts as a view of stored columns: strided where there is more than one row.
inline Tensor starts_view(const ReferenceInput& in) {
  std::vector<std::int32_t> columns;
  for (std::int64_t t = 0; t < in.T; ++t) {
    for (std::int64_t b = 0; b < in.B; ++b)
      columns.push_back(in.document_starts[static_cast<std::size_t>(b * in.T + t)]);
  }
  return from_values<std::int32_t>(columns, {in.T, in.B}).transpose(0, 1);
}

inline AttentionInputs inputs_of(const ReferenceInput& in) {
  AttentionInputs out{in.spec, in.rope, {}};
  if (!in.document_starts.empty()) out.document_starts = from_values<std::int32_t>(in.document_starts, {in.B, in.T});
  return out;
}

struct EngineRun {
  Tensor out, dqkv, dscores;
};

// The engine forward, and backward from `dout` (B, T, H D) unless it is empty. Scores are fp64 in fp64 runs, else fp32.
inline EngineRun run_engine(const ReferenceInput& in, DType dtype, const std::vector<double>& dout,
                            SelectionStats* stats = nullptr) {
  const Variable qkv = Variable::leaf(tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype));
  Variable scores;
  if (in.spec.kind == AttentionKind::sparsek) {
    scores = Variable::leaf(
        tensor_of(in.scores, {in.B, in.score_heads, in.T}, dtype == DType::f64 ? DType::f64 : DType::f32));
  }
  const Variable out = attention(qkv, scores, inputs_of(in), stats);
  EngineRun run{out.value(), {}, {}};
  if (dout.empty()) return run;
  backward(out, tensor_of(dout, out.shape(), dtype));
  run.dqkv = qkv.grad();
  if (scores.defined()) run.dscores = scores.grad();
  return run;
}

inline std::vector<double> draw_values(Draw& d, std::int64_t n) {
  std::vector<double> v;
  for (std::int64_t x = 0; x < n; ++x)
    v.push_back(static_cast<double>(static_cast<float>(bf16(static_cast<float>(2 * d.uniform() - 1)))));
  return v;
}

}  // namespace sieve::test
