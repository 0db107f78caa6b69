// The indexer's loss and its gradients on a GPU against the CPU's, which other tests hold against the definition.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/indexer.h"
#include "attention/kernels/pattern.h"
#include "core/error.h"
#include "gpu_attention.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

struct LossShape {
  std::int64_t B, T, Hi, Di, H, Hkv, D, k;
};

// Rows of up to k keys of the query's document, now and then the newest ones, now and then fewer.
Tensor draw_choice(Draw& d, const LossShape& s, const Tensor& starts) {
  Tensor choice = empty({s.B, 1, s.T, s.k}, DType::i32, Stream{});
  for (std::int64_t row = 0; row < s.B * s.T; ++row) {
    std::int32_t* list = choice.data<std::int32_t>() + row * s.k;
    std::fill(list, list + s.k, kNoChoice);
    const std::int64_t i = row % s.T, start = starts.defined() ? starts.data<std::int32_t>()[row] : 0,
                       n = std::min(d.chance(0.1) ? d.integer(1, s.k) : s.k, i + 1 - start),
                       step = d.chance(0.3) ? 1 : (i + 1 - start) / n,
                       last = i - d.integer(0, i - start - step * (n - 1));
    for (std::int64_t x = 0; x < n; ++x) list[x] = static_cast<std::int32_t>(last - step * (n - 1 - x));
  }
  return choice;
}

// The lists of at most sixteen queries a row, the last one's among them; the others choose nothing. A key of a list of
// 200 more or less changes a loss by about 2e-3, which 2e-5 of the losses of thousands hides and 2e-5 of these does
// not.
Tensor few_lists(const Tensor& choice) {
  Tensor few = choice.clone();
  const std::int64_t T = choice.size(2), k = choice.size(3), step = (T + 15) / 16;
  for (std::int64_t row = 0; row < choice.size(0) * T; ++row)
    if ((T - 1 - row % T) % step != 0) std::fill_n(few.data<std::int32_t>() + row * k, k, kNoChoice);
  return few;
}

// Index rows of halves: their products are exact, so that both sides find the same ones above 0.
void check_index_loss(const LossShape& s, DType dtype, bool documents, std::uint64_t seed) {
  Draw d(178, seed);
  Tensor starts;
  if (documents) {
    ReferenceInput in;
    in.B = s.B, in.T = s.T;
    fill_documents(in, d);
    starts = from_values<std::int32_t>(in.document_starts, {s.B, s.T});
  }
  const auto rows = [&](const Shape& shape) {
    Tensor t = d.normal(shape);
    for (double& x : t.span<double>()) x = static_cast<double>(d.integer(-2, 2)) / 2;
    return t.to(dtype);
  };
  AttentionInputs how;
  how.spec = make_spec(AttentionKind::dsa, s.H, s.Hkv, s.D);
  const Tensor q = rows({s.B, s.Hi, s.T, s.Di}), keys = rows({s.B, 1, s.T, s.Di}),
               w = d.normal({s.B, s.Hi, s.T}, 0.2).to(DType::f32),
               qkv = d.normal({s.B, s.T, how.spec.qkv_features()}).to(dtype), choice = draw_choice(d, s, starts);
  const auto run = [&](auto&& place) {
    const IndexInputs in{Variable::leaf(place(q)), Variable::leaf(place(keys)), Variable::leaf(place(w))};
    const Variable loss = index_loss(in, place(choice), place(qkv), how);
    backward(loss);
    return std::vector<Tensor>{on_host(loss.value()), on_host(in.q.grad()), on_host(in.k.grad()),
                               on_host(in.weights.grad())};
  };
  const auto wanted = run([](const Tensor&t) { return t; }), got = run(on_gpu), again = run(on_gpu);
  for (std::size_t x = 0; x < 4; ++x) {
    INFO("part " << x << " B " << s.B << " T " << s.T << " Hi " << s.Hi << " Di " << s.Di << " H " << s.H << "/"
                 << s.Hkv << " D " << s.D << " k " << s.k << " " << name_of(dtype) << (documents ? " documents" : "")
                 << ": " << worst_of(got[x], wanted[x]));
    const double size = std::max(1.0, max_abs(wanted[x]));
    CHECK(max_difference(got[x], wanted[x]) <= 2e-5 * size);
    CHECK(same_bits(got[x], again[x]));
  }
  const Tensor few = few_lists(choice);
  const auto loss_of = [&](auto&& place) {
    const IndexInputs in{Variable(place(q)), Variable(place(keys)), Variable(place(w))};
    return on_host(index_loss(in, place(few), place(qkv), how).value());
  };
  const Tensor loss = loss_of([](const Tensor&t) { return t; }), there = loss_of(on_gpu);
  INFO("few lists of T " << s.T << " D " << s.D << " k " << s.k << " " << name_of(dtype) << ": "
                         << worst_of(there, loss));
  CHECK(max_difference(there, loss) <= 2e-5 * std::max(1.0, max_abs(loss)));
}

}  // namespace

TEST_CASE("GPU: the indexer's loss of a few short rows", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  for (const DType dtype : {DType::bf16, DType::f32}) {
    check_index_loss({2, 63, 4, 32, 6, 6, 64, 20}, dtype, false, 191);   // one tile
    check_index_loss({1, 130, 3, 64, 4, 2, 128, 30}, dtype, true, 192);  // several, and documents
    check_index_loss({1, 90, 4, 32, 2, 2, 64, 4}, dtype, false, 193);    // key by key
  }
}

TEST_CASE("GPU: the indexer's loss by tiles is that of the CPU at many shapes", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const LossShape shapes[] = {
      {1, 1, 1, 16, 1, 1, 64, 5},       {2, 63, 4, 32, 6, 6, 64, 20},    {2, 64, 4, 32, 6, 6, 64, 64},
      {1, 65, 3, 64, 4, 2, 128, 30},    {3, 130, 2, 128, 4, 1, 64, 100}, {1, 200, 5, 40, 3, 3, 20, 50},
      {2, 257, 1, 7, 2, 1, 72, 300},    {1, 513, 4, 32, 4, 4, 256, 120}, {1, 700, 9, 72, 2, 2, 128, 40},
      {2, 1100, 4, 32, 6, 3, 64, 256},  {1, 2047, 4, 32, 2, 2, 64, 200}, {1, 1500, 2, 16, 1, 1, 16, 24},
      {1, 1500, 2, 160, 1, 1, 200, 23}, {16, 40, 4, 32, 2, 2, 64, 16},   {1, 300, 4, 32, 2, 2, 64, 4},
      {1, 90, 2, 256, 2, 2, 300, 10},
  };
  std::uint64_t seed = 0;
  for (const LossShape& s : shapes) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      check_index_loss(s, dtype, false, ++seed);
      check_index_loss(s, dtype, true, ++seed);
    }
  }
}

TEST_CASE("GPU: the indexer's loss of a batch of several slabs is that of the CPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  check_index_loss({9, 4096, 1, 16, 1, 1, 16, 64}, DType::bf16, false, 1);  // 18,720 blocks of 64 x 64, 16,384 a slab
  check_index_loss({9, 4096, 1, 16, 1, 1, 16, 64}, DType::f32, true, 2);
  check_index_loss({1, 12000, 2, 32, 1, 1, 64, 188}, DType::bf16, false, 3);  // one row is more than a slab
}

TEST_CASE("GPU: the indexer's loss refuses fp64 by tiles and by keys", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Draw d(180, 0);
  for (const LossShape& s : {LossShape{1, 150, 2, 32, 2, 2, 64, 40}, LossShape{1, 150, 2, 32, 2, 2, 64, 2}}) {
    AttentionInputs how;
    how.spec = make_spec(AttentionKind::dsa, s.H, s.Hkv, s.D);
    const IndexInputs in{Variable(on_gpu(d.normal({1, s.Hi, s.T, s.Di}))),
                         Variable(on_gpu(d.normal({1, 1, s.T, s.Di}))), Variable(on_gpu(d.normal({1, s.Hi, s.T})))};
    const Tensor qkv = d.normal({1, s.T, how.spec.qkv_features()});
    CHECK_THROWS_AS(index_loss(in, on_gpu(draw_choice(d, s, {})), on_gpu(qkv), how), Error);
  }
}

TEST_CASE("GPU: a loss that is NaN on the CPU is NaN", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Draw d(179, 0);
  const LossShape s{1, 150, 2, 32, 2, 2, 64, 40};
  AttentionInputs how;
  how.spec = make_spec(AttentionKind::dsa, s.H, s.Hkv, s.D);
  const Tensor choice = draw_choice(d, s, {});
  for (const std::int64_t k : {40, 2}) {  // by tiles and by keys
    const IndexInputs in{Variable(on_gpu(d.normal({1, 2, 150, 32}).to(DType::bf16))),
                         Variable(on_gpu(d.normal({1, 1, 150, 32}).to(DType::bf16))),
                         Variable(on_gpu(d.normal({1, 2, 150}).to(DType::f32)))};
    Tensor qkv = d.normal({1, 150, how.spec.qkv_features()}).to(DType::bf16);
    const Tensor chosen = on_gpu(choice.slice(3, 0, k).contiguous());
    CHECK(std::isfinite(on_host(index_loss(in, chosen, on_gpu(qkv), how).value()).item()));
    qkv.slice(1, 100, 101).fill(std::nan(""));
    CHECK(std::isnan(on_host(index_loss(in, chosen, on_gpu(qkv), how).value()).item()));
  }
}
