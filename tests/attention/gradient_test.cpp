// Gradients of this folder's ops: finite differences in fp64, and what low precision costs.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "attention_ops.h"
#include "core/parallel_for.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

TEST_CASE("every op of the attention folder has exactly one case") {
  std::vector<std::string> cases, names;
  for (const OpCase& c : attention_op_cases()) cases.push_back(c.name);
  for (std::string_view n : attention_ops()) names.emplace_back(n);
  std::sort(cases.begin(), cases.end());
  std::sort(names.begin(), names.end());
  CHECK(cases == names);
}

TEST_CASE("gradients of attention's ops agree with central differences in fp64") {
  const int threads = num_threads();
  set_num_threads(1);  // hundreds of thousands of tiny forwards: waking threads would cost more than the work
  for (const OpCase& op : attention_op_cases()) {
    const OpReport report = check_case_gradients(op, 200);
    INFO(report.where);
    CAPTURE(op.name, report.worst);
    CHECK(report.worst <= 1e-7);
    CHECK(report.samples == 200);
    CHECK(report.views > 0);
    CHECK(report.empty > 0);
    CHECK(report.ones > 0);
  }
  set_num_threads(threads);
}

TEST_CASE("attention's cases reach every gate, position rule and score gradient") {
  int gates[4] = {}, rules[3] = {}, sizeable = 0, tiles = 0;
  for (std::uint64_t c = 0; c < 120; ++c) {
    Draw d(41, c);
    const ReferenceInput in = draw_smooth_input(d);
    tiles += in.T > 64;
    if (in.spec.kind != AttentionKind::sparsek) continue;
    ++gates[static_cast<int>(in.spec.sparsek.gate)];
    ++rules[static_cast<int>(in.spec.sparsek.positions)];
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const ReferenceGradients grads = reference_backward(in, dout);
    sizeable += std::any_of(grads.scores.begin(), grads.scores.end(), [](double g) { return std::abs(g) > 0.01; });
  }
  for (int n : gates) CHECK(n > 5);
  for (int n : rules) CHECK(n > 10);
  CHECK(sizeable > 10);
  CHECK(tiles > 0);
}

namespace {

double bf16_of(double x) { return static_cast<double>(static_cast<float>(bf16(static_cast<float>(x)))); }

// What attention costs in bf16 when every matrix that a framework without fusion would store is rounded: rotated q and
// k, logits, probabilities, their gradients and the results. One head, gates 1, absolute positions; sums are exact.
struct Naive {
  std::vector<double> out, dqkv;
};
Naive naive_bf16(const ReferenceInput& in, const std::vector<double>& dout) {
  const ReferenceMasks masks = reference_masks(in);
  const auto D = static_cast<std::size_t>(in.spec.head_dim), T = static_cast<std::size_t>(in.T), F = 3 * D, R = D / 2;
  const double a = 1 / std::sqrt(static_cast<double>(D));
  const auto turn = [&](std::vector<double> x, std::size_t i, double sign) {
    for (std::size_t r = 0; r < R; ++r) {
      const double angle =
          sign * static_cast<double>(i) * std::pow(in.rope.theta, -static_cast<double>(r) / static_cast<double>(R));
      const double u = x[r], v = x[R + r];
      x[r] = bf16_of(u * std::cos(angle) - v * std::sin(angle));
      x[R + r] = bf16_of(v * std::cos(angle) + u * std::sin(angle));
    }
    return x;
  };
  const auto part = [&](std::size_t i, std::size_t which) {
    const auto at = in.qkv.begin() + static_cast<std::ptrdiff_t>(i * F + which * D);
    return std::vector<double>(at, at + static_cast<std::ptrdiff_t>(D));
  };
  std::vector<std::vector<double>> q, k, v, dk(T, std::vector<double>(D)), dv = dk;
  for (std::size_t i = 0; i < T; ++i) {
    q.push_back(turn(part(i, 0), i, 1));
    k.push_back(turn(part(i, 1), i, 1));
    v.push_back(part(i, 2));
  }
  Naive result{{}, std::vector<double>(in.qkv.size())};
  for (std::size_t i = 0; i < T; ++i) {
    std::vector<double> p(T), o(D), dq(D);
    double top = -1e300, sum = 0, delta = 0;
    const auto seen = [&](std::size_t j) { return masks.window[i * T + j] != 0 || masks.selected[i * T + j] != 0; };
    for (std::size_t j = 0; j < T; ++j) {
      for (std::size_t d = 0; d < D; ++d) p[j] += q[i][d] * k[j][d];
      p[j] = bf16_of(a * p[j]);
      if (seen(j)) top = std::max(top, p[j]);
    }
    for (std::size_t j = 0; j < T; ++j) sum += p[j] = seen(j) ? std::exp(p[j] - top) : 0;
    for (std::size_t j = 0; j < T; ++j) p[j] = bf16_of(p[j] / sum);
    for (std::size_t d = 0; d < D; ++d) {
      for (std::size_t j = 0; j < T; ++j) o[d] += p[j] * v[j][d];
      o[d] = bf16_of(o[d]);
      delta += o[d] * dout[i * D + d];
    }
    for (std::size_t j = 0; j < T; ++j) {
      double dp = 0;
      for (std::size_t d = 0; d < D; ++d) dp += dout[i * D + d] * v[j][d];
      const double ds = bf16_of(p[j] * (bf16_of(dp) - delta));
      for (std::size_t d = 0; d < D; ++d) {
        dv[j][d] += p[j] * dout[i * D + d];
        dk[j][d] += a * ds * q[i][d];
        dq[d] += a * ds * k[j][d];
      }
    }
    for (double& x : dq) x = bf16_of(x);
    dq = turn(dq, i, -1);
    std::copy(dq.begin(), dq.end(), result.dqkv.begin() + static_cast<std::ptrdiff_t>(i * F));
    result.out.insert(result.out.end(), o.begin(), o.end());
  }
  for (std::size_t j = 0; j < T; ++j) {
    for (double& x : dk[j]) x = bf16_of(x);
    dk[j] = turn(dk[j], j, -1);
    for (std::size_t d = 0; d < D; ++d) {
      result.dqkv[j * F + D + d] = dk[j][d];
      result.dqkv[j * F + 2 * D + d] = bf16_of(dv[j][d]);
    }
  }
  return result;
}

double worst_difference(const std::vector<double>& got, const std::vector<double>& wanted) {
  double worst = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) worst = std::max(worst, std::abs(got[i] - wanted[i]));
  return worst;
}

}  // namespace

TEST_CASE("bf16 is at most twice as far off as a naive bf16 attention") {
  for (std::uint64_t c = 0; c < 24; ++c) {
    Draw d(43, c);
    ReferenceInput in;
    in.spec = make_spec(static_cast<AttentionKind>(c % 3), 1, 1, c % 2 == 0 ? 64 : 32);
    in.spec.window = 9;
    in.spec.sparsek.k = 12;
    in.spec.sparsek.gate = GateMode::hard;
    in.T = d.integer(20, 130);
    in.score_heads = 1;
    in.rope.rotary_dims = in.spec.head_dim;
    fill_values(in, d, "normal");
    CAPTURE(describe(in));
    const auto dout = draw_values(d, in.T * in.spec.head_dim);
    const auto out = reference_forward(in);
    const auto grads = reference_backward(in, dout);
    const Naive naive = naive_bf16(in, dout);
    const EngineRun run = run_engine(in, DType::bf16, dout);
    CHECK(run.out.dtype() == DType::bf16);
    CHECK(worst_difference(values_of(run.out), out) <= 2 * worst_difference(naive.out, out));
    CHECK(worst_difference(values_of(run.dqkv), grads.qkv) <= 2 * worst_difference(naive.dqkv, grads.qkv));
  }
}
