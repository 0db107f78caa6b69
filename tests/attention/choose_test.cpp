// What queries choose by content, against the definitions written out: every logit, sorted.
#include "attention/choose.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "attention/kernels/pattern.h"
#include "attention/pattern.h"
#include "attention/rotate.h"
#include "attention_cases.h"
#include "core/parallel_for.h"
#include "dense_oracle.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

using Row = std::vector<double>;

std::int64_t start_of(const ReferenceInput& in, std::int64_t b, std::int64_t i) {
  return in.document_starts.empty() ? 0 : in.document_starts[static_cast<std::size_t>(b * in.T + i)];
}

// Head `head` of position t as it stands in qkv, or rotated.
Row head_at(const ReferenceInput& in, std::int64_t b, std::int64_t t, std::int64_t head, bool rotated) {
  const std::int64_t D = in.spec.head_dim, R = in.rope.rotary_dims / 2;
  const auto first = in.qkv.begin() + static_cast<std::ptrdiff_t>((b * in.T + t) * in.spec.qkv_features() + head * D);
  const Row x(first, first + static_cast<std::ptrdiff_t>(D));
  Row y = x;
  for (std::int64_t r = 0; rotated && r < R; ++r) {
    const double angle =
        static_cast<double>(t) * std::pow(in.rope.theta, -static_cast<double>(r) / static_cast<double>(R));
    const auto u = static_cast<std::size_t>(r), v = static_cast<std::size_t>(R + r);
    y[u] = x[u] * std::cos(angle) - x[v] * std::sin(angle);
    y[v] = x[v] * std::cos(angle) + x[u] * std::sin(angle);
  }
  return y;
}

double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (std::size_t d = 0; d < a.size(); ++d) sum += a[d] * b[d];
  return sum;
}

double logit(const ReferenceInput& in, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
  const std::int64_t kv = in.spec.n_heads + h / in.spec.group();
  return dot(head_at(in, b, i, h, true), head_at(in, b, j, kv, true));
}

// Logits of what query i may choose from, by its number: keys by their position, blocks by theirs in the document.
std::vector<std::pair<double, std::int64_t>> candidates(const ReferenceInput& in, std::int64_t b, std::int64_t h,
                                                        std::int64_t i) {
  const std::int64_t start = start_of(in, b, i), block = in.spec.pattern.block;
  std::vector<std::pair<double, std::int64_t>> all;
  if (in.spec.kind == AttentionKind::top_k) {
    for (std::int64_t j = start; j <= i; ++j) all.emplace_back(logit(in, b, h, i, j), j);
    return all;
  }
  for (std::int64_t x = 0; start + (x + 1) * block <= i - (i - start) % block; ++x) {
    Row mean(static_cast<std::size_t>(in.spec.head_dim));
    for (std::int64_t j = start + x * block; j < start + (x + 1) * block; ++j) {
      const Row k = head_at(in, b, j, in.spec.n_heads + h / in.spec.group(), true);
      for (std::size_t d = 0; d < mean.size(); ++d) mean[d] += k[d] / static_cast<double>(block);
    }
    all.emplace_back(dot(head_at(in, b, i, h, true), mean), x);
  }
  return all;
}

std::set<std::int64_t> best(std::vector<std::pair<double, std::int64_t>> all, std::int64_t k) {
  std::sort(all.begin(), all.end(), std::greater<>());  // larger logit, then the later one
  std::set<std::int64_t> set;
  for (std::size_t x = 0; x < all.size() && static_cast<std::int64_t>(x) < k; ++x) set.insert(all[x].second);
  return set;
}

std::set<std::int64_t> defined_choice(const ReferenceInput& in, std::int64_t b, std::int64_t h, std::int64_t i) {
  const PatternSpec& p = in.spec.pattern;
  if (in.spec.kind == AttentionKind::top_k) return best(candidates(in, b, h, i), p.k);
  std::set<std::int64_t> set = best(candidates(in, b, h, i), p.blocks - 1);
  set.insert((i - start_of(in, b, i)) / p.block);
  return set;
}

// The argmax of [x R; -x R] over the directions of the head.
std::int64_t defined_bucket(const ReferenceInput& in, std::int64_t b, std::int64_t h, std::int64_t t) {
  const Tensor directions = hash_directions(in.spec);
  const std::int64_t R = directions.size(1), D = directions.size(2);
  const Row x = head_at(in, b, t, h, false);
  Row along;
  for (const double sign : {1.0, -1.0}) {
    for (std::int64_t r = 0; r < R; ++r) {
      const double* first = directions.data<double>() + (h * R + r) * D;
      along.push_back(sign * dot(x, Row(first, first + D)));
    }
  }
  return std::max_element(along.begin(), along.end()) - along.begin();
}

Tensor qkv_of(const ReferenceInput& in, DType dtype) {
  return tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype);
}

// As the op gives it to choose(): one key-value head a query head.
ReferenceInput repeated(const ReferenceInput& in) {
  ReferenceInput out = in;
  const std::int64_t H = in.spec.n_heads, Hkv = in.spec.n_kv_heads;
  out.spec.n_kv_heads = H;
  out.qkv.clear();
  for (std::int64_t x = 0; x < in.B * in.T; ++x) {
    for (std::int64_t h = 0; h < 3 * H; ++h) {
      const std::int64_t from = h < H ? h : H + (h < 2 * H ? 0 : Hkv) + h % H / in.spec.group();
      const Row row = head_at(in, x / in.T, x % in.T, from, false);
      out.qkv.insert(out.qkv.end(), row.begin(), row.end());
    }
  }
  return out;
}

Tensor choice_of(const ReferenceInput& in, DType dtype) {
  const ReferenceInput own = repeated(in);
  return choose(qkv_of(own, dtype), inputs_of(own));
}

std::vector<std::int64_t> list_of(const Tensor& choice, std::int64_t b, std::int64_t h, std::int64_t i) {
  const std::int64_t n = choice.size(3), heads = choice.size(1);
  const std::int32_t* list =
      choice.data<std::int32_t>() + ((b * heads + (heads == 1 ? 0 : h)) * choice.size(2) + i) * n;
  return {list, std::find(list, list + n, kNoChoice)};
}

// The pairs that a choice shows, by the definition of the kind.
Visible visible_by(const ReferenceInput& in, const Tensor& choice) {
  return [&in, choice](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
    const std::int64_t start = start_of(in, b, i);
    if (j < start) return false;
    const auto list = list_of(choice, b, h, i);
    const auto has = [&](std::int64_t x) { return std::find(list.begin(), list.end(), x) != list.end(); };
    switch (in.spec.kind) {
      case AttentionKind::hash: return j < i && list == list_of(choice, b, h, j);
      case AttentionKind::moba: return has((j - start) / in.spec.pattern.block);
      default: return has(j);
    }
  };
}

ReferenceInput draw_case(Draw& d, AttentionKind kind, std::int64_t longest) {
  ReferenceInput in;
  const std::int64_t Hkv = d.integer(1, 2);
  in.spec = make_spec(kind, Hkv * d.integer(1, 2), Hkv, d.integer(1, 9));
  in.B = d.integer(1, 2), in.T = d.chance(0.2) ? d.integer(1, 5) : d.integer(1, longest);
  PatternSpec& p = in.spec.pattern;
  p.k = d.chance(0.2) ? in.T + d.integer(0, 3) : d.integer(1, 20);
  p.block = d.integer(1, 12), p.blocks = d.integer(1, 6), p.buckets = 2 * d.integer(1, 5);
  p.seed = static_cast<std::uint64_t>(d.integer(0, 99));
  if (d.chance(0.6)) in.rope.rotary_dims = in.spec.head_dim / 2 * 2;
  if (d.chance(0.4)) fill_documents(in, d);
  fill_values(in, d, "normal");
  return in;
}

// Whole numbers on short vectors: sums are exact in every dtype, and many logits are equal.
ReferenceInput draw_ties(Draw& d, AttentionKind kind) {
  ReferenceInput in = draw_case(d, kind, 150);
  in.rope.rotary_dims = 0;
  in.spec.pattern.block = std::int64_t{1} << d.integer(0, 3);
  for (double& x : in.qkv) x = static_cast<double>(d.integer(-2, 2));
  return in;
}

std::string describe_choice(const ReferenceInput& in) {
  const PatternSpec& p = in.spec.pattern;
  return cat(describe(in), " k ", p.k, " block ", p.block, " blocks ", p.blocks, " buckets ", p.buckets);
}

long wrong_lists(const ReferenceInput& in, const Tensor& choice) {
  long wrong = 0;
  for (std::int64_t x = 0; x < in.B * in.spec.n_heads * in.T; ++x) {
    const std::int64_t i = x % in.T, h = x / in.T % in.spec.n_heads, b = x / in.T / in.spec.n_heads;
    const auto list = list_of(choice, b, h, i);
    const auto wanted = defined_choice(in, b, h, i);
    wrong += list != std::vector<std::int64_t>(wanted.begin(), wanted.end());
  }
  return wrong;
}

double error_of(const Tensor& got, const std::vector<double>& wanted) {
  const auto g = values_of(got);
  REQUIRE(g.size() == wanted.size());
  double worst = 0, most = 1;
  for (std::size_t i = 0; i < g.size(); ++i) {
    const double e = std::abs(g[i] - wanted[i]);
    worst = e <= worst ? worst : (e == e ? e : std::numeric_limits<double>::infinity());
    most = std::max(most, std::abs(wanted[i]));
  }
  return worst / most;
}

constexpr AttentionKind kChoosing[] = {AttentionKind::top_k, AttentionKind::moba};
constexpr AttentionKind kKinds[] = {AttentionKind::top_k, AttentionKind::moba, AttentionKind::hash};

}  // namespace

TEST_CASE("the best keys and the best blocks are those of a full sort and later ones win ties") {
  for (std::uint64_t c = 0; c < 60; ++c) {
    for (const AttentionKind kind : kChoosing) {
      Draw d(71, c);
      const ReferenceInput in = draw_case(d, kind, 150), ties = draw_ties(d, kind);
      CAPTURE(c, describe_choice(in), describe_choice(ties));
      CHECK(wrong_lists(in, choice_of(in, DType::f64)) == 0);
      for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
        CHECK(wrong_lists(ties, choice_of(ties, dtype)) == 0);
    }
  }
}

TEST_CASE("zeros of both signs are one logit") {
  AttentionSpec spec = make_spec(AttentionKind::top_k, 1, 1, 1);
  spec.pattern.k = 2;
  const std::vector<float> keys{0.f, -1e-30f, 0.f, 1e-30f, -1e-30f};  // products vanish
  const Tensor q = full({1, 1, 5, 1}, 1e-30, DType::f32), k = from_values<float>(keys, {1, 1, 5, 1});
  CHECK(list_of(choose_best(q, k, spec), 0, 0, 4) == std::vector<std::int64_t>{3, 4});
}

TEST_CASE("hash buckets: unit directions by seed and head and the argmax of both signs") {
  Draw d(72, 0);
  ReferenceInput in = draw_case(d, AttentionKind::hash, 10);
  in.spec = make_spec(AttentionKind::hash, 3, 3, 64);
  in.spec.pattern.buckets = 16, in.spec.pattern.seed = 5;
  in.B = 2, in.T = 400, in.document_starts.clear();
  fill_values(in, d, "normal");
  const Tensor directions = hash_directions(in.spec);
  double off = 0, common = 0;
  for (std::int64_t x = 0; x < 3 * 8; ++x) {
    const double* r = directions.data<double>() + x * 64;
    off = std::max(off, std::abs(dot(Row(r, r + 64), Row(r, r + 64)) - 1));
    if (x >= 8) common = std::max(common, std::abs(dot(Row(r, r + 64), Row(r - 8 * 64, r - 7 * 64))));
  }
  CHECK(off < 1e-12);
  CHECK(common < 0.6);  // heads have directions of their own
  AttentionSpec other = in.spec;
  CHECK(same_bits(hash_directions(other), directions));
  other.pattern.seed = 6;
  CHECK(max_difference(hash_directions(other), directions) > 0.1);

  const Tensor buckets = choice_of(in, DType::f64);
  long wrong = 0;
  std::vector<long> count(16);
  for (std::int64_t x = 0; x < 2 * 3 * 400; ++x) {
    const std::int64_t bucket = buckets.data<std::int32_t>()[x];
    wrong += bucket != defined_bucket(in, x / 1200, x / 400 % 3, x % 400);
    ++count.at(static_cast<std::size_t>(bucket));
  }
  CHECK(wrong == 0);
  CHECK(*std::min_element(count.begin(), count.end()) > 75);  // of 150 in the mean
  for (double& x : in.qkv) x *= 0.25;
  CHECK(same_bits(choice_of(in, DType::f64), buckets));
  CHECK(same_bits(choice_of(in, DType::bf16), buckets));
}

TEST_CASE("choices by content: attention and gradients equal the dense definition") {
  long blind = 0;
  for (std::uint64_t c = 0; c < 30; ++c) {
    for (const AttentionKind kind : kKinds) {
      Draw d(73, c);
      const ReferenceInput in = draw_case(d, kind, 140);
      CAPTURE(c, describe_choice(in));
      const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
      for (const DType dtype : {DType::f64, DType::f32}) {
        // The lists themselves are judged above; in fp32 logits closer than their rounding may change places.
        const DenseResult wanted = DenseOracle(in, visible_by(in, choice_of(in, dtype))).run(dout);
        const EngineRun run = run_engine(in, dtype, dout);
        const double bound = dtype == DType::f64 ? 1e-12 : 1e-5;
        CHECK(error_of(run.out, wanted.out) <= bound);
        CHECK(error_of(run.dqkv, wanted.dqkv) <= bound);
        blind += kind == AttentionKind::hash && wanted.out[0] == 0;
      }
    }
  }
  CHECK(blind == 60);  // a first token has no other one in its bucket
}

TEST_CASE("in fp32 a choice leaves out no key that is better by more than rounding") {
  for (std::uint64_t c = 0; c < 30; ++c) {
    Draw d(74, c);
    const ReferenceInput in = draw_case(d, AttentionKind::top_k, 150);
    CAPTURE(c, describe_choice(in));
    const Tensor choice = choice_of(in, DType::f32);
    long wrong = 0;
    for (std::int64_t i = 0; i < in.T; ++i) {
      const auto list = list_of(choice, 0, 0, i);
      double least = std::numeric_limits<double>::infinity(), most = -least;
      for (const auto& [value, j] : candidates(in, 0, 0, i)) {
        const bool chosen = std::find(list.begin(), list.end(), j) != list.end();
        if (chosen) least = std::min(least, value);
        else most = std::max(most, value);
      }
      wrong += most > least + 1e-4;
      wrong += static_cast<std::int64_t>(list.size()) != std::min(in.spec.pattern.k, i - start_of(in, 0, i) + 1);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("choices by content in bf16 are at most twice as far off as a naive bf16 attention") {
  for (std::uint64_t c = 0; c < 18; ++c) {
    Draw d(75, c);
    ReferenceInput in = draw_case(d, kKinds[c % 3], 10);
    in.spec = make_spec(kKinds[c % 3], 2, 2, c % 2 == 0 ? 64 : 32);
    in.spec.pattern.k = 12, in.spec.pattern.block = 8, in.spec.pattern.blocks = 3, in.spec.pattern.buckets = 8;
    in.B = 1, in.T = d.integer(60, 140), in.rope.rotary_dims = in.spec.head_dim, in.document_starts.clear();
    fill_values(in, d, "normal");
    CAPTURE(describe_choice(in));
    const auto dout = draw_values(d, in.T * 2 * in.spec.head_dim);
    const Visible sees = visible_by(in, choice_of(in, DType::bf16));
    const DenseResult exact = DenseOracle(in, sees).run(dout), naive = DenseOracle(in, sees, true).run(dout);
    const EngineRun run = run_engine(in, DType::bf16, dout);
    const auto worst = [](const std::vector<double>& got, const std::vector<double>& wanted) {
      double w = 0;
      for (std::size_t x = 0; x < wanted.size(); ++x) w = std::max(w, std::abs(got[x] - wanted[x]));
      return w;
    };
    CHECK(worst(values_of(run.out), exact.out) <= 2 * worst(naive.out, exact.out));
    CHECK(worst(values_of(run.dqkv), exact.dqkv) <= 2 * worst(naive.dqkv, exact.dqkv));
  }
}

TEST_CASE("where everything may be chosen top_k and moba are full attention") {
  for (std::uint64_t c = 0; c < 20; ++c) {
    for (const AttentionKind kind : kChoosing) {
      Draw d(76, c);
      ReferenceInput in = draw_case(d, kind, 120);
      in.spec.pattern.k = in.T, in.spec.pattern.blocks = in.T / in.spec.pattern.block + 1;
      CAPTURE(describe_choice(in));
      const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
      ReferenceInput full = in;
      full.spec.kind = AttentionKind::full;
      const EngineRun a = run_engine(in, DType::f64, dout), b = run_engine(full, DType::f64, dout);
      CHECK(relative_difference(a.out, b.out) <= 1e-12);
      CHECK(relative_difference(a.dqkv, b.dqkv) <= 1e-12);
    }
  }
}

TEST_CASE("a packed document chooses and attends as the same document alone") {
  for (std::uint64_t c = 0; c < 20; ++c) {
    for (const AttentionKind kind : kKinds) {
      Draw d(77, c);
      ReferenceInput packed = draw_case(d, kind, 100);
      packed.B = 1, packed.T += 40, packed.rope.rotary_dims = 0;
      const std::int64_t cut = d.integer(1, packed.T - 1), F = packed.spec.qkv_features();
      packed.document_starts.assign(static_cast<std::size_t>(packed.T), 0);
      std::fill(packed.document_starts.begin() + cut, packed.document_starts.end(), static_cast<std::int32_t>(cut));
      fill_values(packed, d, "normal");
      ReferenceInput alone = packed;
      alone.T = packed.T - cut, alone.document_starts.clear();
      alone.qkv.erase(alone.qkv.begin(), alone.qkv.begin() + static_cast<std::ptrdiff_t>(cut * F));
      CAPTURE(describe_choice(packed), cut);
      const Tensor a = choice_of(packed, DType::f32), b = choice_of(alone, DType::f32);
      const std::int64_t shift = kind == AttentionKind::top_k ? cut : 0;
      long wrong = 0;
      for (std::int64_t x = 0; x < packed.spec.n_heads * alone.T; ++x) {
        auto list = list_of(b, 0, x / alone.T, x % alone.T);
        for (std::int64_t& j : list) j += shift;
        wrong += list != list_of(a, 0, x / alone.T, cut + x % alone.T);
      }
      CHECK(wrong == 0);
      const EngineRun whole = run_engine(packed, DType::f32, {}), part = run_engine(alone, DType::f32, {});
      CHECK(max_difference(whole.out.slice(1, cut, packed.T), part.out) <= 1e-6);
    }
  }
}

TEST_CASE("the last positions choose the same from kept keys bit for bit") {
  for (std::uint64_t c = 0; c < 30; ++c) {
    for (const AttentionKind kind : kChoosing) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        Draw d(78, c);
        ReferenceInput in = draw_case(d, kind, 150);
        in.document_starts.clear();
        const std::int64_t H = in.spec.n_heads, Hkv = in.spec.n_kv_heads, D = in.spec.head_dim, T = in.T,
                           n = d.integer(1, T), first = T - n;
        CAPTURE(describe_choice(in), n);
        const Tensor all = choice_of(in, dtype), qkv = qkv_of(in, dtype);
        const Tensor q = rotate_heads(Variable(qkv.slice(1, first, T).slice(2, 0, H * D)), H, in.rope, first).value();
        Tensor keys = zeros({in.B, Hkv, T + 9, D}, dtype);  // a cache with room for more
        keys.slice(2, 0, T).copy_from(rotate_heads(Variable(qkv.slice(2, H * D, (H + Hkv) * D)), Hkv, in.rope).value());
        const Tensor kept = keys.slice(2, 0, T);
        CHECK(same_bits(choose_best(q, kept, in.spec), all.slice(2, first, T)));
        const NewToken token{.qkv = {},
                             .query = q.slice(2, n - 1, n).contiguous().reshape({in.B, H, D}),
                             .keys = kept,
                             .position = T - 1};
        CHECK(same_bits(next_choice(in.spec)(token),
                        all.slice(2, T - 1, T).contiguous().reshape({in.B, H, all.size(3)})));
      }
    }
  }
}

TEST_CASE("NaN in a key is chosen by every later query so that nobody overlooks it") {
  for (const AttentionKind kind : kChoosing) {
    ReferenceInput in;
    in.spec = make_spec(kind, 1, 1, 4);
    in.spec.pattern.k = 2, in.spec.pattern.block = 4, in.spec.pattern.blocks = 2;
    in.T = 90;
    Draw d(79, 0);
    fill_values(in, d, "normal");
    in.qkv[9 * 12 + 5] = std::nan("");
    const Tensor out = run_engine(in, DType::f32, {}).out;
    long finite = 0, lost = 0;
    for (std::int64_t i = 0; i < 90; ++i) {
      const double x = static_cast<double>(out.data<float>()[i * 4]);
      if (i < 9) lost += !std::isfinite(x);
      else if (i >= 12 || kind == AttentionKind::top_k) finite += std::isfinite(x);
    }
    CHECK(lost == 0);
    CHECK(finite == 0);
  }
}

TEST_CASE("the number of threads changes no choice and no bit of the attention over it") {
  const int before = num_threads();
  for (const AttentionKind kind : kKinds) {
    Draw d(80, 1);
    ReferenceInput in = draw_case(d, kind, 10);
    in.spec = make_spec(kind, 4, 2, 16);
    in.spec.pattern.k = 20, in.spec.pattern.block = 16, in.spec.pattern.blocks = 3, in.spec.pattern.buckets = 8;
    in.B = 2, in.T = 333, in.document_starts.clear(), in.rope.rotary_dims = 16;
    fill_values(in, d, "normal");
    const auto dout = draw_values(d, in.B * in.T * 64);
    set_num_threads(1);
    const Tensor choice = choice_of(in, DType::f32);
    const EngineRun one = run_engine(in, DType::f32, dout);
    set_num_threads(4);
    const EngineRun many = run_engine(in, DType::f32, dout);
    CHECK(same_bits(choice_of(in, DType::f32), choice));
    CHECK(same_bits(many.out, one.out));
    CHECK(same_bits(many.dqkv, one.dqkv));
  }
  set_num_threads(before);
}

TEST_CASE("choices: messages name the number that is wrong") {
  const auto message = [](AttentionKind kind, auto&& change) {
    ReferenceInput in;
    in.spec = make_spec(kind, 2, 2, 4);
    in.spec.pattern.k = 2, in.spec.pattern.block = 2, in.spec.pattern.blocks = 2, in.spec.pattern.buckets = 4;
    in.T = 6;
    Draw d(81, 0);
    fill_values(in, d, "normal");
    change(in.spec.pattern);
    try {
      run_engine(in, DType::f32, {});
    } catch (const Error& e) { return cat(static_cast<int>(e.code()), " ", e.what()); }
    return std::string("no error");
  };
  CHECK(message(AttentionKind::top_k, [](PatternSpec&) {}) == "no error");
  CHECK(message(AttentionKind::top_k, [](PatternSpec& p) { p.k = 0; }).find("2 [attention] k must be at least 1") == 0);
  CHECK(message(AttentionKind::moba, [](PatternSpec& p) { p.block = 0; }).find("block and blocks must be at least 1") !=
        std::string::npos);
  CHECK(message(AttentionKind::hash, [](PatternSpec& p) { p.buckets = 3; }).find("buckets 3 must be even") !=
        std::string::npos);
  CHECK(message(AttentionKind::dsa, [](PatternSpec&) {}).find("type dsa does not choose") != std::string::npos);
}
