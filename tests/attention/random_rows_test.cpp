// Random rows + window, the control of learned selection: the k largest random numbers among the keys that have left
// the window, and nothing that content could move.
#include <algorithm>
#include <map>
#include <utility>

#include "attention/decode.h"
#include "attention/random_scores.h"
#include "attention_cases.h"
#include "dense_oracle.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"

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

// What every query of a document selects, by head, if the document (1, n) is alone in its row.
std::vector<std::vector<std::int64_t>> sets_of(const Tensor& document, const ReferenceInput& in) {
  const Tensor all = random_scores(document_numbers(document, {}), in.score_heads, {.seed = kSeed}, {});
  const std::int64_t n = document.size(1);
  std::vector<std::vector<std::int64_t>> sets;
  for (std::int64_t x = 0; x < in.score_heads * n; ++x) {
    const float* first = all.data<float>() + x / n * n;
    sets.push_back(selected({first, first + n}, in.spec, x % n));
  }
  return sets;
}

// One document and position after position, as a generation goes.
void check_generation(const ReferenceInput& in, const Tensor& tokens, const Tensor& qkv, const Tensor& wanted,
                      const std::vector<std::vector<std::vector<std::int64_t>>>& sets) {
  AttentionCache cache(in.spec, in.rope, in.B, DType::f64, 0, in.score_heads);
  Tensor before;
  for (std::int64_t t = 0; t < in.T; ++t) {
    const Tensor numbers = document_numbers(tokens.slice(1, t, t + 1), {}, t, before);
    before = numbers.flatten();
    const Tensor scores = random_scores(numbers, in.score_heads, {.seed = kSeed, .first_position = t}, {});
    CHECK(relative_difference(cache.step(qkv.slice(1, t, t + 1), scores), wanted.slice(1, t, t + 1)) <= 1e-12);
    for (std::int64_t x = 0; x < in.B * in.spec.n_kv_heads; ++x) {
      const std::int64_t b = x / in.spec.n_kv_heads, kv = x % in.spec.n_kv_heads;
      CHECK(cache.selected(b, kv) ==
            sets[static_cast<std::size_t>(b)][static_cast<std::size_t>((in.score_heads == 1 ? 0 : kv) * in.T + t)]);
    }
  }
}

}  // namespace

TEST_CASE(
    "random rows: a query sees its window and the k largest random numbers that left it: also in packed documents") {
  for (std::uint64_t c = 0; c < 50; ++c) {
    Draw d(65, c);
    const ReferenceInput in = draw_case(d);
    CAPTURE(c, describe(in));
    const AttentionInputs how = inputs_of(in);
    const Tensor tokens = d.ids({in.B, in.T}, 0, 40);
    const Tensor numbers = document_numbers(tokens, how.document_starts),
                 scores = random_scores(numbers, in.score_heads, {.seed = kSeed}, how.document_starts);
    const Tensor qkv = tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, DType::f64);
    const auto start_of = [&](std::int64_t b, std::int64_t i) -> std::int64_t {
      return in.document_starts.empty() ? 0 : in.document_starts[static_cast<std::size_t>(b * in.T + i)];
    };
    std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::vector<std::int64_t>>> sets;  // row, start
    std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> length;
    for (std::int64_t x = 0; x < in.B * in.T; ++x) ++length[{x / in.T, start_of(x / in.T, x % in.T)}];
    for (const auto& [place, n] : length) {
      const auto [b, start] = place;
      sets[place] = sets_of(tokens.slice(0, b, b + 1).slice(1, start, start + n).contiguous(), in);
    }
    const Visible sees = [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
      const std::int64_t start = start_of(b, i);
      if (j < start) return false;
      const std::int64_t hs = in.score_heads == 1 ? 0 : h / in.spec.group();
      const auto& set = sets[{b, start}][static_cast<std::size_t>(hs * length[{b, start}] + i - start)];
      return j > i - in.spec.window || std::binary_search(set.begin(), set.end(), j - start);
    };
    const Tensor wanted = from_values<double>(DenseOracle(in, sees).run({}).out, {in.B, in.T, in.spec.n_heads * 8});
    CHECK(relative_difference(attention(Variable(qkv), Variable(scores), how).value(), wanted) <= 1e-12);
    if (in.document_starts.empty()) check_generation(in, tokens, qkv, wanted, {sets[{0, 0}], sets[{1, 0}]});
  }
}

TEST_CASE("random rows: numbers are uniform and differ by seed and head and document and run as far as it does") {
  constexpr int kLength = 20000;
  const Tensor tokens = zeros({3, kLength}, DType::i32);
  tokens.data<std::int32_t>()[kLength] = 1;          // another first token
  tokens.data<std::int32_t>()[2 * kLength + 9] = 1;  // the tenth token of a document is not looked at
  const Tensor numbers = document_numbers(tokens, {});
  const Tensor a = random_scores(numbers, 2, {.seed = 1}, {}), b = random_scores(numbers, 2, {.seed = 2}, {});
  const float* x = a.data<float>();
  double mean = 0, square = 0, product = 0;
  int same_document = 0, other_document = 0, same_seed = 0;
  for (int t = 0; t < kLength; ++t) {
    const double u = x[t], v = x[kLength + t];
    mean += u / kLength, square += u * u / kLength, product += (u - 0.5) * (v - 0.5) / kLength;
    other_document += x[t] == x[2 * kLength + t], same_document += x[t] == x[4 * kLength + t];
    same_seed += x[t] == b.data<float>()[t];
  }
  CHECK(std::abs(mean - 0.5) < 0.01);
  CHECK(std::abs(square - 1.0 / 3) < 0.01);
  CHECK(std::abs(product) < 0.004);
  CHECK(same_document == kLength);
  CHECK(other_document < 5);
  CHECK(same_seed < 5);
}

TEST_CASE("random rows: a document is known by its first tokens and no later token moves an earlier number") {
  Draw d(66, 0);
  const Tensor tokens = d.ids({1, 40}, 0, 1000);
  const auto number = [](const Tensor& t, std::int64_t i) { return document_numbers(t, {}).data<std::int64_t>()[i]; };
  for (std::int64_t changed = 0; changed < 12; ++changed) {
    Tensor other = tokens.clone();
    other.data<std::int32_t>()[changed] += 1;
    for (std::int64_t i = 0; i < 40; ++i) {
      CAPTURE(changed, i);
      CHECK((number(other, i) == number(tokens, i)) == (i < changed || changed >= 8));
    }
  }
  // In two parts: the second goes on where the first ended, within the first tokens and beyond.
  for (const std::int64_t at : {1, 3, 8, 20}) {
    const Tensor first = document_numbers(tokens.slice(1, 0, at), {}),
                 second = document_numbers(tokens.slice(1, at, 40), {}, at, first.slice(1, at - 1, at).flatten());
    for (std::int64_t i = at; i < 40; ++i) CHECK(second.data<std::int64_t>()[i - at] == number(tokens, i));
  }
  CHECK_THROWS_AS(document_numbers(tokens, {}, 5), Error);
}

TEST_CASE("random rows on the GPU: the numbers of the CPU bit for bit", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 20; ++c) {
    Draw d(68, c);
    ReferenceInput in;
    in.B = d.integer(1, 3), in.T = d.integer(1, 900);
    if (c % 2 == 0) fill_documents(in, d);
    const Tensor starts = inputs_of(in).document_starts, tokens = d.ids({in.B, in.T}, 0, 50000);
    const Tensor there = starts.defined() ? starts.to(gpu_stream()) : Tensor();
    const std::int64_t first = c % 4 == 1 ? d.integer(1, 20) : 0;
    const Tensor before = first > 0 ? document_numbers(tokens, {}).slice(1, 0, 1).contiguous().flatten() : Tensor();
    const Tensor cpu = document_numbers(tokens, starts, first, before),
                 gpu = document_numbers(tokens.to(gpu_stream()), there, first,
                                        before.defined() ? before.to(gpu_stream()) : Tensor());
    const RandomScores what{.seed = c, .first_position = first};
    CAPTURE(c, in.B, in.T, first);
    CHECK(same_bits(gpu.to(Stream{}), cpu));
    CHECK(same_bits(random_scores(gpu, 3, what, there).to(Stream{}), random_scores(cpu, 3, what, starts)));
  }
}
