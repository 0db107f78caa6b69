// The token indexer against its definition: which keys it chooses, its loss, and that nothing else learns from it.
#include "attention/indexer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/kernels/pattern.h"
#include "attention/rotate.h"
#include "attention_cases.h"
#include "autograd/ops.h"
#include "core/parallel_for.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/draw.h"

using namespace sieve;
using namespace sieve::test;

namespace {

struct Problem {
  std::int64_t B, T, Hi, Di, k;
  Tensor q, keys, weights, starts, qkv;  // fp64
  AttentionInputs how;

  IndexInputs inputs(DType dtype) const {
    const DType exact = compute_dtype(dtype);
    return {Variable(q.to(dtype)), Variable(keys.to(dtype)), Variable(weights.to(exact))};
  }
  std::int64_t start(std::int64_t b, std::int64_t i) const {
    return starts.defined() ? starts.data<std::int32_t>()[b * T + i] : 0;
  }
  double score(std::int64_t b, std::int64_t i, std::int64_t j) const {
    double sum = 0;
    for (std::int64_t h = 0; h < Hi; ++h) {
      double x = 0;
      for (std::int64_t d = 0; d < Di; ++d)
        x += q.data<double>()[((b * Hi + h) * T + i) * Di + d] * keys.data<double>()[(b * T + j) * Di + d];
      sum += weights.data<double>()[(b * Hi + h) * T + i] * std::max(x, 0.0);
    }
    return sum;
  }
};

Problem draw_problem(Draw& d, bool whole_numbers) {
  Problem p{
      d.integer(1, 2), d.integer(1, 150), d.integer(1, 4), d.integer(1, 9), d.integer(1, 25), {}, {}, {}, {}, {}, {}};
  p.q = d.normal({p.B, p.Hi, p.T, p.Di}), p.keys = d.normal({p.B, 1, p.T, p.Di}),
  p.weights = d.normal({p.B, p.Hi, p.T});
  for (Tensor* t : {&p.q, &p.keys, &p.weights}) {
    for (double& x : t->span<double>())
      if (whole_numbers) x = static_cast<double>(d.integer(-2, 2));
  }
  AttentionSpec& s = p.how.spec;
  s.kind = AttentionKind::dsa;
  s.n_kv_heads = d.integer(1, 2), s.n_heads = s.n_kv_heads * d.integer(1, 2), s.head_dim = 6;
  s.pattern.k = p.k;
  if (d.chance(0.5)) {
    ReferenceInput documents;
    documents.B = p.B, documents.T = p.T;
    fill_documents(documents, d);
    p.starts = from_values<std::int32_t>(documents.document_starts, {p.B, p.T});
    p.how.document_starts = p.starts;
  }
  p.qkv = d.normal({p.B, p.T, s.qkv_features()});
  return p;
}

std::vector<std::int64_t> defined_choice(const Problem& p, std::int64_t b, std::int64_t i) {
  std::vector<std::pair<double, std::int64_t>> all;
  for (std::int64_t j = p.start(b, i); j <= i; ++j) all.emplace_back(p.score(b, i, j), j);
  std::sort(all.begin(), all.end(), std::greater<>());
  std::vector<std::int64_t> best;
  for (std::size_t x = 0; x < all.size() && static_cast<std::int64_t>(x) < p.k; ++x) best.push_back(all[x].second);
  std::sort(best.begin(), best.end());
  return best;
}

std::vector<double> softmax(std::vector<double> x) {
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v);
  for (double& v : x) v /= sum;
  return x;
}

// What a query's loss is made of, by the definition; no rotary positions.
struct Query {
  std::int64_t b, i;
  std::vector<std::int64_t> chosen;
  std::vector<double> target, r;  // p and r
};

template <class See>
void each_query(const Problem& p, const See& see) {
  const AttentionSpec& s = p.how.spec;
  const std::int64_t F = s.qkv_features(), D = s.head_dim;
  for (std::int64_t row = 0; row < p.B * p.T; ++row) {
    Query q{row / p.T, row % p.T, defined_choice(p, row / p.T, row % p.T), {}, {}};
    q.target.resize(q.chosen.size());
    std::vector<double> index;
    for (const std::int64_t j : q.chosen) index.push_back(p.score(q.b, q.i, j));
    for (std::int64_t h = 0; h < s.n_heads; ++h) {
      std::vector<double> logits;
      for (const std::int64_t j : q.chosen) {
        double x = 0;
        for (std::int64_t d = 0; d < D; ++d)
          x += p.qkv.data<double>()[row * F + h * D + d] *
               p.qkv.data<double>()[(q.b * p.T + j) * F + (s.n_heads + h / s.group()) * D + d];
        logits.push_back(x / std::sqrt(static_cast<double>(D)));
      }
      const auto one = softmax(logits);
      for (std::size_t x = 0; x < one.size(); ++x) q.target[x] += one[x] / static_cast<double>(s.n_heads);
    }
    q.r = softmax(index);
    see(q);
  }
}

// Sum over all queries of KL(p || r) over the keys of the definition.
double defined_loss(const Problem& p) {
  double loss = 0;
  each_query(p, [&](const Query& q) {
    for (std::size_t x = 0; x < q.r.size(); ++x) loss += q.target[x] * std::log(q.target[x] / q.r[x]);
  });
  return loss;
}

// Its derivatives by q, k and weights, dI = r - p carried back through I.
std::vector<Tensor> defined_gradients(const Problem& p) {
  std::vector<Tensor> grads{zeros(p.q.shape(), DType::f64), zeros(p.keys.shape(), DType::f64),
                            zeros(p.weights.shape(), DType::f64)};
  each_query(p, [&](const Query& q) {
    for (std::size_t x = 0; x < q.r.size(); ++x) {
      const double d = q.r[x] - q.target[x];
      for (std::int64_t h = 0; h < p.Hi; ++h) {
        const std::int64_t at = (q.b * p.Hi + h) * p.T + q.i, key = q.b * p.T + q.chosen[x];
        const double *a = p.q.data<double>() + at * p.Di, *k = p.keys.data<double>() + key * p.Di;
        double dot = 0;
        for (std::int64_t e = 0; e < p.Di; ++e) dot += a[e] * k[e];
        if (dot <= 0) continue;
        const double w = p.weights.data<double>()[at];
        grads[2].data<double>()[at] += d * dot;
        for (std::int64_t e = 0; e < p.Di; ++e) {
          grads[0].data<double>()[at * p.Di + e] += d * w * k[e];
          grads[1].data<double>()[key * p.Di + e] += d * w * a[e];
        }
      }
    }
  });
  return grads;
}

long wrong_lists(const Problem& p, const Tensor& choice) {
  long wrong = 0;
  for (std::int64_t row = 0; row < p.B * p.T; ++row) {
    const auto wanted = defined_choice(p, row / p.T, row % p.T);
    const std::int32_t* list = choice.data<std::int32_t>() + row * p.k;
    const std::vector<std::int64_t> got(list, std::find(list, list + p.k, kNoChoice));
    wrong += got != wanted;
  }
  return wrong;
}

}  // namespace

TEST_CASE("the indexer's choice is that of a full sort of its scores and later keys win ties") {
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(91, c);
    const Problem p = draw_problem(d, false), ties = draw_problem(d, true);
    CAPTURE(c, p.T, p.k, ties.T, ties.k);
    CHECK(wrong_lists(p, index_choice(p.inputs(DType::f64), p.k, p.starts)) == 0);
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
      CHECK(wrong_lists(ties, index_choice(ties.inputs(dtype), ties.k, ties.starts)) == 0);
  }
}

TEST_CASE("the indexer's loss is the divergence of its definition") {
  for (std::uint64_t c = 0; c < 40; ++c) {
    Draw d(92, c);
    const Problem p = draw_problem(d, false);
    CAPTURE(c, p.T, p.k);
    const Tensor choice = index_choice(p.inputs(DType::f64), p.k, p.starts);
    const double wanted = defined_loss(p);
    CHECK(wanted >= 0);
    CHECK(index_loss(p.inputs(DType::f64), choice, p.qkv, p.how).value().item() ==
          Approx(wanted).epsilon(1e-10).margin(1e-10));
    CHECK(index_loss(p.inputs(DType::f32), choice, p.qkv.to(DType::f32), p.how).value().item() ==
          Approx(wanted).epsilon(1e-5).margin(1e-5));
  }
}

TEST_CASE("the indexer's gradients are those of its definition") {
  for (std::uint64_t c = 0; c < 40; ++c) {
    Draw d(94, c);
    const Problem p = draw_problem(d, false);
    CAPTURE(c, p.T, p.k);
    const IndexInputs leaves{Variable::leaf(p.q), Variable::leaf(p.keys), Variable::leaf(p.weights)};
    const Tensor choice = index_choice(leaves, p.k, p.starts);
    backward(index_loss(leaves, choice, p.qkv, p.how));
    const auto wanted = defined_gradients(p);
    CHECK(max_difference(leaves.q.grad(), wanted[0]) <= 1e-11);
    CHECK(max_difference(leaves.k.grad(), wanted[1]) <= 1e-11);
    CHECK(max_difference(leaves.weights.grad(), wanted[2]) <= 1e-11);
  }
}

TEST_CASE("the indexer's loss is NaN where a target is") {
  Draw d(95, 0);
  Problem p = draw_problem(d, false);
  const Tensor choice = index_choice(p.inputs(DType::f64), p.k, p.starts);
  p.qkv.data<double>()[0] = std::nan("");
  for (const DType dtype : {DType::f64, DType::f32})
    CHECK(std::isnan(index_loss(p.inputs(dtype), choice, p.qkv.to(dtype), p.how).value().item()));
}

TEST_CASE("the indexer's gradients in fp32 and bf16 are those of fp64 on any number of threads") {
  const int before = num_threads();
  for (std::uint64_t c = 0; c < 12; ++c) {
    Draw d(93, c);
    Problem p = draw_problem(d, false);
    const bool half = c % 2 == 1;
    for (Tensor* t : {&p.q, &p.keys, &p.qkv}) *t = rounded(*t, half ? DType::bf16 : DType::f32);
    p.weights = rounded(p.weights, DType::f32);
    const Tensor choice = index_choice(p.inputs(DType::f64), p.k, p.starts);
    const auto gradients = [&](DType dtype) {
      const IndexInputs x = p.inputs(dtype);
      const IndexInputs leaves{Variable::leaf(x.q.value()), Variable::leaf(x.k.value()),
                               Variable::leaf(x.weights.value())};
      backward(index_loss(leaves, choice, p.qkv.to(dtype), p.how));
      return std::vector<Tensor>{leaves.q.grad(), leaves.k.grad(), leaves.weights.grad()};
    };
    const auto exact = gradients(DType::f64);
    set_num_threads(1);
    const auto one = gradients(half ? DType::bf16 : DType::f32);
    set_num_threads(4);
    const auto many = gradients(half ? DType::bf16 : DType::f32);
    CAPTURE(c, p.T, p.k);
    for (std::size_t x = 0; x < 3; ++x) {
      CHECK(same_bits(one[x], many[x]));
      CHECK(relative_difference(one[x], exact[x]) <= 1e-5);  // fp32 from the inputs on
    }
  }
  set_num_threads(before);
}

TEST_CASE("a loss that rides along has gradient 1 whatever arrives at its host") {
  for (const double arriving : {0.0, 1.0, -7.0}) {
    const Variable x = Variable::leaf(full({2, 3}, 2, DType::f64)), w = Variable::leaf(full({2}, 3, DType::f64));
    const Variable y = with_loss(x, sum(mul(w, w)));
    CHECK(same_bits(y.value(), x.value()));
    backward(y, full({2, 3}, arriving, DType::f64));
    CHECK(max_difference(x.grad(), full({2, 3}, arriving, DType::f64)) == 0);
    CHECK(max_difference(w.grad(), full({2}, 6, DType::f64)) == 0);
  }
}
