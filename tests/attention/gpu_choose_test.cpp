// Choices by content on a GPU against the CPU's, which other tests hold against full sorts.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/choose.h"
#include "attention/indexer.h"
#include "attention/kernels/pattern.h"
#include "attention/rotate.h"
#include "attention/shared_qk.h"
#include "choice_cases.h"
#include "choice_ops.h"
#include "core/error.h"
#include "gpu_attention.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// Lists of n entries that differ between two choices.
long different_lists(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  const std::int64_t n = a.size(3);
  const std::int32_t *x = a.data<std::int32_t>(), *y = b.data<std::int32_t>();
  long different = 0;
  for (std::int64_t row = 0; row < a.numel() / std::max<std::int64_t>(1, n); ++row)
    different += !std::equal(x + row * n, x + (row + 1) * n, y + row * n);
  return different;
}

// Whole numbers make sums exact and many logits equal.
Tensor draw_rows(Draw& d, const Shape& shape, bool whole, DType dtype) {
  Tensor t = d.normal(shape);
  for (double& x : t.span<double>())
    if (whole) x = static_cast<double>(d.integer(-2, 2));
  return t.to(dtype);
}

Tensor draw_starts(Draw& d, std::int64_t B, std::int64_t T) {
  if (d.chance(0.5)) return {};
  ReferenceInput in;
  in.B = B, in.T = T;
  fill_documents(in, d);
  return from_values<std::int32_t>(in.document_starts, {B, T});
}

Tensor there(const Tensor& t) { return t.defined() ? t.to(gpu_stream()) : t; }
Tensor here(const Tensor& t) { return t.to(Stream{}); }

// In fp32 a logit near the cut may differ in its last bits; whole numbers decide exactly.
long allowed(bool whole, const Tensor& choice) { return whole ? 0 : 1 + choice.numel() / choice.size(3) / 500; }

}  // namespace

TEST_CASE("GPU: the best keys and blocks are those of the CPU and later ones win ties", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 160; ++c) {
    Draw d(171, c);
    const bool whole = c % 2 == 0, moba = c % 4 >= 2;
    const DType dtype = d.chance(0.5) ? DType::bf16 : DType::f32;
    const std::int64_t Hk = d.integer(1, 2), H = Hk * d.integer(1, 3), B = d.integer(1, 2),
                       T = d.integer(1, c < 150 ? 700 : 4000), N = d.chance(0.3) ? d.integer(1, T) : T,
                       D = d.chance(0.6)   ? 64
                           : d.chance(0.3) ? 128
                                           : d.integer(1, 70);
    AttentionSpec spec = make_spec(moba ? AttentionKind::moba : AttentionKind::top_k, H, Hk, D);
    spec.pattern.k = d.chance(0.2) ? d.integer(1, 2500) : d.integer(1, 90);
    spec.pattern.block = whole ? std::int64_t{1} << d.integer(0, 6) : d.integer(1, 70);
    spec.pattern.blocks = d.integer(1, 9);
    const Tensor q = draw_rows(d, {B, H, N, D}, whole, dtype), k = draw_rows(d, {B, Hk, T, D}, whole, dtype);
    const Tensor starts = draw_starts(d, B, T);
    INFO("case " << c << " B " << B << " H " << H << "/" << Hk << " N " << N << " T " << T << " D " << D << " k "
                 << spec.pattern.k << " block " << spec.pattern.block << " blocks " << spec.pattern.blocks
                 << (moba ? " moba " : " top_k ") << name_of(dtype) << (starts.defined() ? " documents" : ""));
    const Tensor wanted = choose_best(q, k, spec, starts);
    Tensor room = zeros({B, Hk, T + 8, D}, dtype, gpu_stream());  // as a cache holds them
    room.slice(2, 0, T).copy_from(there(k));
    const Tensor got = choose_best(there(q), d.chance(0.5) ? there(k) : room.slice(2, 0, T), spec, there(starts));
    const Compared r = compare_choices({q, k, {}, starts, moba ? spec.pattern.block : 0}, here(got), wanted);
    CHECK(r.wrong == 0);
    CHECK(r.other <= allowed(whole, wanted));
  }
}

TEST_CASE("GPU: the indexer chooses as on the CPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(172, c);
    const bool whole = c % 2 == 0;
    const DType dtype = d.chance(0.5) ? DType::bf16 : DType::f32;
    const std::int64_t B = d.integer(1, 2), Hi = d.integer(1, 5), T = d.integer(1, 900), N = d.chance(0.3) ? 1 : T,
                       D = d.chance(0.5) ? 32 : d.integer(1, 40), k = d.integer(1, d.chance(0.2) ? 2500 : 90);
    const Tensor q = draw_rows(d, {B, Hi, N, D}, whole, dtype), keys = draw_rows(d, {B, 1, T, D}, whole, dtype),
                 w = draw_rows(d, {B, Hi, N}, whole, DType::f32), starts = draw_starts(d, B, T);
    INFO("case " << c << " B " << B << " Hi " << Hi << " N " << N << " T " << T << " D " << D << " k " << k << " "
                 << name_of(dtype));
    const Tensor wanted = index_choice({Variable(q), Variable(keys), Variable(w)}, k, starts);
    const IndexInputs inputs{Variable(there(q)), Variable(there(keys)), Variable(there(w))};
    const Compared r = compare_choices({q, keys, w, starts}, here(index_choice(inputs, k, there(starts))), wanted);
    CHECK(r.wrong == 0);
    CHECK(r.other <= allowed(whole, wanted));
  }
}

TEST_CASE("GPU: NaN is chosen and two runs choose alike", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Draw d(173, 0);
  AttentionSpec spec = make_spec(AttentionKind::top_k, 2, 2, 64);
  spec.pattern.k = 40;
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const Tensor q = draw_rows(d, {1, 2, 1500, 64}, false, dtype);
    Tensor k = draw_rows(d, {1, 2, 1500, 64}, false, dtype);
    k.slice(2, 700, 701).fill(std::nan(""));
    const Tensor a = here(choose_best(there(q), there(k), spec)), b = here(choose_best(there(q), there(k), spec));
    INFO(name_of(dtype));
    CHECK(same_bits(a, b));
    long without = 0;
    for (std::int64_t row = 0; row < 2 * 1500; ++row) {
      const std::int32_t* list = a.data<std::int32_t>() + row * 40;
      without += row % 1500 >= 700 && std::find(list, list + 40, 700) == list + 40;
    }
    CHECK(without == 0);
  }
}

TEST_CASE("GPU: where all logits are equal the latest are chosen and -0 equals +0", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const std::int64_t k : {1, 700, 1024, 1500, 3000}) {
      const std::int64_t T = 2900;
      AttentionSpec spec = make_spec(AttentionKind::top_k, 1, 1, 64);
      spec.pattern.k = k;
      const Tensor q = full({1, 1, T, 64}, 1e-30, dtype);
      Tensor keys = zeros({1, 1, T, 64}, DType::f64);
      for (std::int64_t t = 0; t < T; t += 3)
        keys.data<double>()[t * 64] = t % 2 == 0 ? -1e-30 : 1e-30;  // products vanish
      keys = keys.to(dtype);
      INFO("k " << k << " " << name_of(dtype));
      const Tensor choice = here(choose_best(there(q), there(keys), spec));
      CHECK(same_bits(choice, choose_best(q, keys, spec)));
      long wrong = 0;
      for (std::int64_t i = 0; i < T; ++i) {
        const std::int64_t n = std::min(k, i + 1);
        for (std::int64_t x = 0; x < n; ++x) wrong += choice.data<std::int32_t>()[i * k + x] != i + 1 - n + x;
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("GPU: long lists at the widths of training", "[gpu]") {
  SIEVE_NEEDS_GPU();
  struct Shape4 {
    std::int64_t T, N, D, k;
  };
  // Lists of 1,024 for 16 queries a block, with 128 features, of 8 and of 2; a single new position; a long row.
  for (const Shape4 s : {Shape4{4096, 300, 64, 1024},
                         {4096, 300, 128, 1024},
                         {6000, 60, 64, 2500},
                         {6000, 20, 64, 5000},
                         {5000, 1, 64, 1024},
                         {40000, 20, 64, 1024}}) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      Draw d(177, static_cast<std::uint64_t>(s.T + s.k + s.D));
      AttentionSpec spec = make_spec(AttentionKind::top_k, 2, 1, s.D);
      spec.pattern.k = s.k;
      const Tensor q = draw_rows(d, {1, 2, s.N, s.D}, false, dtype), k = draw_rows(d, {1, 1, s.T, s.D}, false, dtype);
      const Tensor wanted = choose_best(q, k, spec), got = here(choose_best(there(q), there(k), spec));
      const Compared r = compare_choices({q, k, {}, {}}, got, wanted);
      INFO("T " << s.T << " N " << s.N << " D " << s.D << " k " << s.k << " " << name_of(dtype) << ": " << r.other
                << " of " << r.lists << " differ");
      CHECK(r.wrong == 0);
      CHECK(r.other <= 1 + r.lists / 20);  // logits lie close at a cut through the midst of many
    }
  }
}

TEST_CASE("GPU: lists longer than shared memory are refused", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const DType dtype : {DType::bf16, DType::f32}) {
    AttentionSpec spec = make_spec(AttentionKind::top_k, 1, 1, 64);
    spec.pattern.k = 30000;  // at 8 bytes an entry, and a block holds two lists
    CHECK_THROWS_AS(
        choose_best(full({1, 1, 1, 64}, 1, dtype, gpu_stream()), full({1, 1, 40000, 64}, 1, dtype, gpu_stream()), spec),
        Error);
  }
}

TEST_CASE("GPU: rotation and shared queries and keys are those of the CPU in fp32", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const OpCase& op : choice_op_cases()) {
    if (op.name == "index_loss") continue;  // a test of its own, with choices there
    const OpReport report = check_case_on_device(op, gpu_stream(), 60);
    INFO(op.name << " " << report.where);
    CHECK(report.worst <= 1e-5);
  }
}

namespace {

// Least distance of a chosen pair's q . k from 0, over all index heads. q (B, Hi, T, Di), keys (B, 1, T, Di), choice
// (B, 1, T, k).
double nearest_kink(const Tensor& q, const Tensor& keys, const Tensor& choice) {
  const std::int64_t B = q.size(0), Hi = q.size(1), T = q.size(2), Di = q.size(3), k = choice.size(3);
  double least = 1;
  for (std::int64_t x = 0; x < B * Hi * T * k; ++x) {
    const std::int64_t b = x / k / T / Hi, i = x / k % T;
    const std::int32_t j = choice.data<std::int32_t>()[(b * T + i) * k + x % k];
    if (j == kNoChoice) continue;
    double dot = 0;
    for (std::int64_t e = 0; e < Di; ++e)
      dot += static_cast<double>(q.data<float>()[x / k * Di + e]) * keys.data<float>()[(b * T + j) * Di + e];
    least = std::min(least, std::abs(dot));
  }
  return least;
}

}  // namespace

TEST_CASE("GPU: the indexer's loss and gradients are those of the CPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  int compared = 0;
  for (std::uint64_t c = 0; c < 40; ++c) {
    Draw d(176, c);
    const std::int64_t B = d.integer(1, 3), Hi = d.integer(1, 5), T = d.integer(1, 300),
                       Di = d.chance(0.5) ? 32 : d.integer(1, 70), k = d.integer(1, 300);
    AttentionInputs how;
    how.spec = make_spec(AttentionKind::dsa, 4, d.chance(0.5) ? 4 : 2, d.chance(0.5) ? 64 : d.integer(1, 20));
    const Tensor q = d.normal({B, Hi, T, Di}).to(DType::f32), keys = d.normal({B, 1, T, Di}).to(DType::f32),
                 w = d.normal({B, Hi, T}, 0.2).to(DType::f32), starts = draw_starts(d, B, T),
                 qkv = d.normal({B, T, how.spec.qkv_features()}).to(DType::f32);
    const Tensor choice = index_choice({Variable(q), Variable(keys), Variable(w)}, k, starts);
    if (nearest_kink(q, keys, choice) < 3e-6) continue;  // ReLU turns at a score that both round their own way
    ++compared;
    const auto run = [&](auto&& place) {
      const IndexInputs in{Variable::leaf(place(q)), Variable::leaf(place(keys)), Variable::leaf(place(w))};
      const Variable loss = index_loss(in, place(choice), place(qkv), how);
      backward(loss);
      return std::vector<Tensor>{here(loss.value()), here(in.q.grad()), here(in.k.grad()), here(in.weights.grad())};
    };
    const auto wanted = run([](const Tensor&t) { return t; }), got = run(there), again = run(there);
    for (std::size_t x = 0; x < 4; ++x) {
      INFO("case " << c << " part " << x << " B " << B << " Hi " << Hi << " T " << T << " Di " << Di << " k " << k
                   << " D " << how.spec.head_dim << ": " << worst_of(got[x], wanted[x]));
      const double size = std::max(1.0, max_abs(wanted[x]));
      CHECK(max_difference(got[x], wanted[x]) <= 2e-5 * size);
      CHECK(same_bits(got[x], again[x]));
    }
  }
  CHECK(compared >= 25);
}

TEST_CASE("GPU: hash buckets are those of the CPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 20; ++c) {
    Draw d(174, c);
    AttentionSpec spec = make_spec(AttentionKind::hash, d.integer(1, 6), 1, d.chance(0.5) ? 64 : d.integer(1, 70));
    spec.pattern.buckets = 2 * d.integer(1, 40), spec.pattern.seed = c;
    const Tensor q = draw_rows(d, {2, d.integer(1, 600), spec.n_heads * spec.head_dim}, false,
                               c % 2 == 0 ? DType::bf16 : DType::f32);
    const Tensor wanted = hash_buckets(q, spec);
    INFO("case " << c << " " << spec.pattern.buckets << " buckets");
    CHECK(different_lists(here(hash_buckets(there(q), spec)), wanted) <= 1);
  }
}

TEST_CASE("GPU: attention over choices by content is that of the CPU in nearly every row", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const AttentionKind kind : {AttentionKind::top_k, AttentionKind::moba, AttentionKind::hash}) {
    for (std::uint64_t c = 0; c < 8; ++c) {
      Draw d(175, c);
      ReferenceInput in;
      in.spec = make_spec(kind, 4, c % 2 == 0 ? 4 : 2, 64);
      in.spec.pattern.k = 20, in.spec.pattern.block = 16, in.spec.pattern.blocks = 3, in.spec.pattern.buckets = 8;
      in.T = d.integer(100, 400), in.rope.rotary_dims = 64;
      if (c % 3 == 0) fill_documents(in, d);
      fill_values(in, d, "normal");
      const Tensor qkv = tensor_of(in.qkv, {1, in.T, in.spec.qkv_features()}, DType::f32);
      AttentionInputs how = inputs_of(in);
      const Tensor wanted = attention(Variable(qkv), {}, how).value();
      how.document_starts = there(how.document_starts);
      const Tensor got = here(attention(Variable(there(qkv)), {}, how).value());
      long off = 0;
      for (std::int64_t row = 0; row < in.T * 4; ++row) {
        double worst = 0;
        for (std::int64_t x = row * 64; x < (row + 1) * 64; ++x)
          worst = std::max(worst, static_cast<double>(std::abs(got.data<float>()[x] - wanted.data<float>()[x])));
        off += !(worst <= 1e-4);
      }
      INFO(describe(in) << " " << off << " rows differ");
      CHECK(off <= in.T * 4 / 100);
    }
  }
}
