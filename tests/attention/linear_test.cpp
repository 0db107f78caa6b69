// Attention by recurrences against token-by-token oracles in fp64, written from the definitions of docs/attention.md.
#include "attention/linear.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "linear_cases.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// max |got - wanted| / max(1, max |wanted|)
double error_of(const Tensor& got, const std::vector<double>& wanted) {
  const auto g = values_of(got);
  REQUIRE(g.size() == wanted.size());
  double worst = 0, largest = 1;
  for (std::size_t i = 0; i < g.size(); ++i) {
    const double e = std::abs(g[i] - wanted[i]);
    worst = e <= worst ? worst : (e == e ? e : 1e300);
    largest = std::max(largest, std::abs(wanted[i]));
  }
  return worst / largest;
}

}  // namespace

TEST_CASE("linear attentions equal their token by token recurrences in fp64 and fp32") {
  int with_documents = 0, long_rows = 0;
  for (std::uint64_t c = 0; c < 120; ++c) {
    Draw d(61, c);
    const LinearCase in = draw_linear_case(d, c % 3 == 0 ? 200 : 70);
    CAPTURE(c, describe(in));
    const LinearOracle wanted = linear_oracle(in);
    for (const DType dtype : {DType::f64, DType::f32}) {
      CAPTURE(name_of(dtype));
      const LinearRun run = run_linear(in, dtype);
      const double bound = dtype == DType::f64 ? 1e-12 : 1e-5;
      CHECK(error_of(run.out, wanted.out) <= bound);
      CHECK(error_of(run.dqkv, wanted.dqkv) <= bound);
      if (in.gated) CHECK(error_of(run.dgates, wanted.dgates) <= bound);
    }
    with_documents += !in.starts.empty();
    long_rows += in.T > 64 && in.T % 64 != 0;
  }
  CHECK(with_documents > 20);
  CHECK(long_rows > 15);
}

TEST_CASE("gates near 0 and near 1 stay exact over many chunks") {
  for (const double logit : {-1e30, -2000.0, -60.0, 0.0, 40.0, 1e30}) {
    Draw d(67, 0);
    LinearCase in = draw_linear_case(d, 70);
    in.gated = true, in.B = 1, in.T = 333, in.shape = {2, 2, 8, 6}, in.starts.clear(), in.exit.clear();
    fill_linear(in, d);
    for (std::size_t x = 0; x < in.gates.size(); ++x)
      in.gates[x] = x % 7 == 3 ? -logit : static_cast<double>(static_cast<float>(logit));
    CAPTURE(logit);
    const LinearOracle wanted = linear_oracle(in);
    for (const DType dtype : {DType::f64, DType::f32}) {
      const LinearRun run = run_linear(in, dtype);
      const double bound = dtype == DType::f64 ? 1e-12 : 1e-5;
      CHECK(error_of(run.out, wanted.out) <= bound);
      CHECK(error_of(run.dqkv, wanted.dqkv) <= bound);
      CHECK(error_of(run.dgates, wanted.dgates) <= bound);
    }
  }
}

TEST_CASE("a packed document is bit for bit the document alone in linear attentions") {
  for (const bool gated : {false, true}) {
    Draw d(71, gated);
    LinearCase in = draw_linear_case(d, 70);
    in.gated = gated, in.B = 1, in.T = 150, in.shape = {4, 2, 8, 5}, in.exit.clear();
    in.starts.assign(150, 0);
    std::fill(in.starts.begin() + 37, in.starts.end(), 37);
    fill_linear(in, d);
    LinearCase alone = in;
    alone.T = 113, alone.starts.clear();
    const auto cut = [](std::vector<double>& v, std::int64_t each) { v.erase(v.begin(), v.begin() + 37 * each); };
    cut(alone.qkv, in.shape.features()), cut(alone.dout, 4 * 5);
    if (gated) cut(alone.gates, 2 * 8);
    const LinearRun packed = run_linear(in, DType::f32), single = run_linear(alone, DType::f32);
    CHECK(same_bits(packed.out.slice(1, 37, 150).contiguous(), single.out));
    CHECK(same_bits(packed.dqkv.slice(1, 37, 150).contiguous(), single.dqkv));
  }
}

TEST_CASE("a state carried through generation gives the outputs of the whole and keeps its size") {
  for (const bool gated : {false, true}) {
    Draw d(73, gated);
    LinearCase in = draw_linear_case(d, 70);
    in.gated = gated, in.B = 2, in.T = 140, in.shape = {4, 2, 8, 5}, in.starts.clear(), in.exit.clear();
    fill_linear(in, d);
    const LinearRun whole = run_linear(in, DType::f32);
    const Tensor qkv = tensor_of(in.qkv, {2, 140, in.shape.features()}, DType::f32);
    const Tensor gates = gated ? tensor_of(in.gates, {2, 140, 16}, DType::f32) : Tensor();
    Tensor state;
    for (std::int64_t t = 0; t < 140;) {
      const std::int64_t end = t == 0 ? 71 : t + 1;
      const Tensor part = qkv.slice(1, t, end);
      const Tensor out = gated ? gated_linear_attention_extend(part, gates.slice(1, t, end), in.shape, state)
                               : linear_attention_extend(part, in.shape, {}, state);
      CHECK(same_bits(out, whole.out.slice(1, t, end).contiguous()));
      CHECK(state.numel() == 2 * 2 * 8 * (gated ? 5 : 6));
      t = end;
    }
  }
}

TEST_CASE("linear attentions in bf16 are at most twice as far off as naive ones") {
  for (std::uint64_t c = 0; c < 16; ++c) {
    Draw d(79, c);
    LinearCase in = draw_linear_case(d, 70);
    in.gated = c % 2 == 1, in.B = 1, in.T = d.integer(20, 150), in.shape = {2, 2, 32, 32};
    in.starts.clear(), in.exit.clear();
    fill_linear(in, d);
    CAPTURE(describe(in));
    const LinearOracle exact = linear_oracle(in), naive = linear_oracle(in, true);
    const LinearRun run = run_linear(in, DType::bf16);
    const auto worst = [](const std::vector<double>& x, const std::vector<double>& y) {
      double most = 0;
      for (std::size_t i = 0; i < y.size(); ++i) most = std::max(most, std::abs(x[i] - y[i]));
      return most;
    };
    CHECK(run.out.dtype() == DType::bf16);
    CHECK(worst(values_of(run.out), exact.out) <= 2 * worst(naive.out, exact.out));
    CHECK(worst(values_of(run.dqkv), exact.dqkv) <= 2 * worst(naive.dqkv, exact.dqkv));
    if (in.gated) CHECK(worst(values_of(run.dgates), exact.dgates) <= 2 * worst(naive.dgates, exact.dgates));
  }
}

TEST_CASE("the linear state of SparseK holds the keys that are neither in the window nor selected") {
  int entries = 0, at_once = 0;
  for (std::uint64_t c = 0; c < 80; ++c) {
    Draw d(83, c);
    ReferenceInput in = draw_input(d, 90, kScoreKinds[c % kScoreKinds.size()]);
    in.spec.kind = AttentionKind::sparsek;
    in.spec.window = std::min<std::int64_t>(in.spec.window, 9), in.spec.sparsek.k = d.integer(1, 9);
    fill_values(in, d, kScoreKinds[c % kScoreKinds.size()]);
    CAPTURE(c, describe(in));
    SelectionLives lives;
    const AttentionInputs how = inputs_of(in);
    attention(Variable(tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, DType::f64)),
              Variable(tensor_of(in.scores, {in.B, in.score_heads, in.T}, DType::f64)), how, nullptr, &lives);
    const KeyExits exits = key_exits(lives.from, lives.to, in.spec.window, how.document_starts);
    const ReferenceMasks masks = reference_masks(in);
    int wrong = 0;
    for (std::int64_t row = 0; row < in.B * in.score_heads; ++row) {
      const std::int64_t b = row / in.score_heads;
      std::vector<char> inside(static_cast<std::size_t>(in.T), 0);
      for (std::int64_t i = 0; i < in.T; ++i) {
        const std::int32_t* first = exits.first.data<std::int32_t>() + row * (in.T + 1) + i;
        for (std::int32_t x = first[0]; x < first[1]; ++x) {
          inside[static_cast<std::size_t>(exits.keys.data<std::int32_t>()[row * in.T + x])] += 1;
          ++entries;
        }
        const std::int64_t start =
            in.document_starts.empty() ? 0 : in.document_starts[static_cast<std::size_t>(b * in.T + i)];
        for (std::int64_t j = start; j <= i; ++j) {
          const auto pair = static_cast<std::size_t>((row * in.T + i) * in.T + j);
          const bool window = i - j < in.spec.window, selected = masks.selected[pair] != 0;
          wrong += inside[static_cast<std::size_t>(j)] != (window || selected ? 0 : 1);
        }
      }
    }
    CHECK(wrong == 0);
    at_once += in.spec.sparsek.candidates == Candidates::at_once;
  }
  CHECK(entries > 500);
  CHECK(at_once > 20);
}
