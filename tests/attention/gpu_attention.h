// Random attention problems on a GPU, and how to run them there.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "attention/dense.h"
#include "attention/rotary.h"
#include "attention_cases.h"
#include "support/compare.h"
#include "support/gpu.h"

namespace sieve::test {

inline Tensor on_gpu(const Tensor& t) { return t.defined() ? t.to(gpu_stream()) : t; }
inline Tensor on_host(const Tensor& t) { return t.defined() ? t.to(Stream{}) : t; }

// What is tested here is the project's engine, also where the fused library would serve the layer.
class EngineOnly {
 public:
  EngineOnly() { allow_dense_attention(false); }
  ~EngineOnly() { allow_dense_attention(true); }
};

// run_engine() on the GPU; the results come back to the host.
inline EngineRun run_on_gpu(const ReferenceInput& in, DType dtype, const std::vector<double>& dout,
                            SelectionStats* stats = nullptr) {
  const EngineOnly engine;
  const Variable qkv = Variable::leaf(on_gpu(tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype)));
  Variable scores;
  if (in.spec.kind == AttentionKind::sparsek) {
    scores = Variable::leaf(
        on_gpu(tensor_of(in.scores, {in.B, in.score_heads, in.T}, dtype == DType::f64 ? DType::f64 : DType::f32)));
  }
  AttentionInputs how = inputs_of(in);
  how.document_starts = on_gpu(how.document_starts);
  const Variable out = attention(qkv, scores, how, stats);
  EngineRun run{on_host(out.value()), {}, {}};
  if (dout.empty()) return run;
  backward(out, on_gpu(tensor_of(dout, out.shape(), dtype)));
  run.dqkv = on_host(qkv.grad());
  if (scores.defined()) run.dscores = on_host(scores.grad());
  return run;
}

// Lengths around the edges of tiles (64 queries) and of the lists of backward (512), head sizes of both kinds of
// kernels.
inline ReferenceInput draw_gpu_input(Draw& d, const std::string& kind, bool tensor_cores) {
  ReferenceInput in = draw_input(d, 150, kind);
  constexpr std::int64_t kLengths[] = {1, 63, 64, 65, 130, 513}, kHeadSizes[] = {1, 7, 33, 64, 72, 96, 128};
  if (d.chance(0.6)) in.T = kLengths[d.integer(0, d.chance(0.3) ? 5 : 4)];
  if (d.chance(0.6) || tensor_cores) in.spec.head_dim = kHeadSizes[d.integer(0, 6)];
  if (tensor_cores) in.spec.head_dim = d.chance(0.5) ? 64 : 128;
  in.rope.rotary_dims = std::min(in.rope.rotary_dims * d.integer(1, 4), in.spec.head_dim / 2 * 2);
  if (in.T > 150) {
    in.B = 1;
    if (d.chance(0.5)) in.spec.window = d.integer(1, 40), in.spec.sparsek.k = d.integer(1, 100);
  }
  if (!in.document_starts.empty()) fill_documents(in, d);
  fill_values(in, d, kind);
  return in;
}

// q and k turned by the angles of their positions (sign -1: back), rounded to bf16 as an attention does that hands them
// to tensor cores.
inline std::vector<double> turned(std::vector<double> qkv, const ReferenceInput& in, float sign) {
  const std::int64_t R = in.rope.rotary_dims / 2, D = in.spec.head_dim, F = in.spec.qkv_features();
  const RotaryTable table = rotary_table(in.rope, in.T, DType::f32, Stream{});
  for (std::int64_t row = 0; R > 0 && row < in.B * in.T; ++row) {
    for (std::int64_t h = 0; h < in.spec.n_heads + in.spec.n_kv_heads; ++h) {
      double* v = qkv.data() + row * F + h * D;
      for (std::int64_t r = 0; r < R; ++r) {
        const float cos = table.cos.data<float>()[row % in.T * R + r];
        const float sin = sign * table.sin.data<float>()[row % in.T * R + r];
        const auto a = static_cast<float>(v[r]), b = static_cast<float>(v[R + r]);
        v[r] = static_cast<float>(bf16(a * cos - b * sin));
        v[R + r] = static_cast<float>(bf16(b * cos + a * sin));
      }
    }
  }
  return qkv;
}

// The largest errors of outputs, of gradients and of the scores' gradients over many cases.
struct Worst {
  double error[3] = {};
  std::string where[3];

  void add(const EngineRun& got, const EngineRun& exact, const std::string& what) {
    const Tensor* results[] = {&got.out, &got.dqkv, &got.dscores};
    const Tensor* wanted[] = {&exact.out, &exact.dqkv, &exact.dscores};
    for (int x = 0; x < 3; ++x) {
      if (!wanted[x]->defined()) continue;
      const double e = relative_difference(*results[x], *wanted[x]);
      if (!(e <= error[x])) error[x] = e, where[x] = what;
    }
  }
};

}  // namespace sieve::test
