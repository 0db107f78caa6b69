// The softmax engine against the O(T^2) oracle, and its promises: threads, NaN, equality with full attention, messages.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "attention_cases.h"
#include "core/parallel_for.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

double least(const std::vector<double>& v) {
  double m = std::numeric_limits<double>::infinity();
  for (double x : v) m = std::min(m, x);
  return m;
}

double largest(const std::vector<double>& v) {
  double m = 0;
  for (double x : v) m = std::max(m, std::abs(x));
  return m;
}

// max |got - wanted| / max(1, max |wanted|)
double error_of(const Tensor& got, const std::vector<double>& wanted) {
  const auto g = values_of(got);
  REQUIRE(g.size() == wanted.size());
  double worst = 0;
  for (std::size_t i = 0; i < g.size(); ++i) {
    const double e = std::abs(g[i] - wanted[i]);
    worst = e <= worst ? worst : (e == e ? e : std::numeric_limits<double>::infinity());
  }
  return worst / std::max(1.0, largest(wanted));
}

}  // namespace

TEST_CASE("the engine equals the oracle: every pattern, gate and position rule, fp64 and fp32") {
  int sparse = 0, with_score_gradient = 0;
  for (std::uint64_t c = 0; c < 260; ++c) {
    Draw d(11, c);
    const std::string kind = kScoreKinds[c % kScoreKinds.size()];
    const ReferenceInput in = draw_input(d, c % 10 == 0 ? 200 : 90, kind);
    CAPTURE(c, kind, describe(in));
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const auto out = reference_forward(in);
    const auto grads = reference_backward(in, dout);
    // At a kink of the operator (a score at an end of the band) the two may take different sides of the derivative.
    const bool smooth = in.spec.kind != AttentionKind::sparsek || least(reference_masks(in).band_margin) > 1e-5;
    for (const DType dtype : {DType::f64, DType::f32}) {
      const double bound = dtype == DType::f64 ? 1e-12 : 1e-5;
      CAPTURE(name_of(dtype));
      const EngineRun run = run_engine(in, dtype, dout);
      CHECK(error_of(run.out, out) <= bound);
      CHECK(error_of(run.dqkv, grads.qkv) <= bound);
      if (in.spec.kind == AttentionKind::sparsek && smooth) {
        CHECK(error_of(run.dscores, grads.scores) <= bound);
        with_score_gradient += largest(grads.scores) > 1e-3;
      }
    }
    sparse += in.spec.kind == AttentionKind::sparsek;
  }
  CHECK(sparse > 120);
  CHECK(with_score_gradient > 60);
}
