// Random rows + window, the control of learned selection: the k largest random numbers among the keys that have left
// the window, and nothing that content could move.
#include <algorithm>

#include "attention/decode.h"
#include "attention/random_scores.h"
#include "attention_cases.h"
#include "dense_oracle.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

constexpr std::uint64_t kSeed = 77;

ReferenceInput draw_case(Draw& d) {
  ReferenceInput in;
  in.spec = make_spec(AttentionKind::sparsek, 2, d.integer(1, 2), 8);
  in.spec.window = d.integer(1, 30);
  in.spec.sparsek.k = d.integer(1, 40), in.spec.sparsek.gate = GateMode::hard, in.spec.sparsek.random_scores = true;
  in.spec.pattern.seed = kSeed;
  in.rope.rotary_dims = 8;
  in.B = 2, in.T = d.integer(1, 180), in.score_heads = d.chance(0.5) ? 1 : in.spec.n_kv_heads;
  if (d.chance(0.6)) fill_documents(in, d);
  fill_values(in, d, "normal");
  return in;
}

// Positions of the document that query i has selected, by sorting every number that has left its window.
std::vector<std::int64_t> selected(const std::vector<float>& numbers, const AttentionSpec& spec, std::int64_t i) {
  std::vector<std::pair<float, std::int64_t>> left;
  for (std::int64_t j = 0; j <= i - spec.window; ++j) left.push_back({numbers[static_cast<std::size_t>(j)], j});
  std::sort(left.rbegin(), left.rend());
  std::vector<std::int64_t> out;
  for (std::size_t x = 0; x < left.size() && x < static_cast<std::size_t>(spec.sparsek.k); ++x)
    out.push_back(left[x].second);
  std::sort(out.begin(), out.end());
  return out;
}

// The numbers of one document that is alone in its row, by head.
std::vector<float> numbers_of(std::int64_t heads, std::int64_t head, std::int64_t n) {
  const Tensor all = random_scores(1, heads, n, {.seed = kSeed}, {}, {});
  const float* first = all.data<float>() + head * n;
  return {first, first + n};
}

}  // namespace

TEST_CASE(
    "random rows: a query sees its window and the k largest random numbers that left it: also in packed documents") {
  for (std::uint64_t c = 0; c < 50; ++c) {
    Draw d(65, c);
    const ReferenceInput in = draw_case(d);
    CAPTURE(c, describe(in));
    const AttentionInputs how = inputs_of(in);
    const Tensor scores = random_scores(in.B, in.score_heads, in.T, {.seed = kSeed}, how.document_starts, {});
    const Tensor qkv = tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, DType::f64);
    std::vector<std::vector<std::int64_t>> sets;  // (Hs, i) of one document
    for (std::int64_t x = 0; x < in.score_heads * in.T; ++x)
      sets.push_back(selected(numbers_of(in.score_heads, x / in.T, in.T), in.spec, x % in.T));
    const Visible sees = [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
      const std::int64_t start =
          in.document_starts.empty() ? 0 : in.document_starts[static_cast<std::size_t>(b * in.T + i)];
      if (j < start) return false;
      const std::int64_t hs = in.score_heads == 1 ? 0 : h / in.spec.group();
      const auto& set = sets[static_cast<std::size_t>(hs * in.T + i - start)];
      return j > i - in.spec.window || std::binary_search(set.begin(), set.end(), j - start);
    };
    const Tensor wanted = from_values<double>(DenseOracle(in, sees).run({}).out, {in.B, in.T, in.spec.n_heads * 8});
    CHECK(relative_difference(attention(Variable(qkv), Variable(scores), how).value(), wanted) <= 1e-12);
    if (!in.document_starts.empty()) continue;
    AttentionCache cache(in.spec, in.rope, in.B, DType::f64, 0, in.score_heads);
    for (std::int64_t t = 0; t < in.T; ++t) {
      const RandomScores next{.seed = kSeed, .first_position = t};
      const Tensor y = cache.step(qkv.slice(1, t, t + 1), random_scores(in.B, in.score_heads, 1, next, {}, {}));
      CHECK(relative_difference(y, wanted.slice(1, t, t + 1)) <= 1e-12);
      for (std::int64_t kv = 0; kv < in.spec.n_kv_heads; ++kv)
        CHECK(cache.selected(1, kv) == sets[static_cast<std::size_t>((in.score_heads == 1 ? 0 : kv) * in.T + t)]);
    }
  }
}

TEST_CASE("random rows: numbers are uniform and differ by seed and head and not by row") {
  const Tensor a = random_scores(2, 2, 20000, {.seed = 1}, {}, {}), b = random_scores(1, 2, 20000, {.seed = 2}, {}, {});
  const float* x = a.data<float>();
  double mean = 0, square = 0, product = 0;
  int same_row = 0, same_seed = 0;
  for (int t = 0; t < 20000; ++t) {
    const double u = x[t], v = x[20000 + t];
    mean += u / 20000, square += u * u / 20000, product += (u - 0.5) * (v - 0.5) / 20000;
    same_row += x[t] == x[40000 + t], same_seed += x[t] == b.data<float>()[t];
  }
  CHECK(std::abs(mean - 0.5) < 0.01);
  CHECK(std::abs(square - 1.0 / 3) < 0.01);
  CHECK(std::abs(product) < 0.004);
  CHECK(same_row == 20000);
  CHECK(same_seed < 5);
}
