// What type nsa has of its own, against its definitions in fp64 (nsa_oracle.h).
#include "attention/nsa.h"

#include "attention/kernels/nsa.h"
#include "attention/pattern.h"
#include "attention/pattern_cache.h"
#include "autograd/ops.h"
#include "dense_oracle.h"
#include "nsa_cases.h"
#include "nsa_ops.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/errors.h"

using namespace sieve;
using namespace sieve::test;

namespace {

double difference(const Tensor& got, const std::vector<double>& wanted) {
  return relative_difference(got, from_values<double>(std::span(wanted), got.shape()));
}

}  // namespace

TEST_CASE("attention over compressed keys and its choice of blocks and its gradients follow their definition") {
  int documents = 0, long_rows = 0, short_rows = 0;
  for (std::uint64_t c = 0; c < 150; ++c) {
    Draw d(91, c);
    const CompressedCase in = draw_compressed(d, c % 4 == 0 ? 230 : 80);
    CAPTURE(c, describe(in));
    const std::vector<double> dout = draw_values(d, static_cast<std::int64_t>(in.q.size()));
    const CompressedResult exact = CompressedOracle(in, room(in)).run(dout);
    for (const DType dtype : {DType::f64, DType::f32}) {
      const double bound = dtype == DType::f64 ? 1e-12 : 1e-5;
      const CompressedRun run = run_compressed(in, dtype, dout);
      CHECK(difference(run.out, exact.out) <= bound);
      CHECK(difference(run.dq, exact.dq) <= bound);
      CHECK(difference(run.dk, exact.dk) <= bound);
      CHECK(difference(run.dv, exact.dv) <= bound);
      CHECK(wrong_choices(run.choice, exact, bound) == 0);
    }
    const CompressedResult naive = CompressedOracle(in, room(in), true).run(dout);
    const CompressedRun run = run_compressed(in, DType::bf16, dout);
    check_twice_naive(run.out, naive.out, exact.out);
    check_twice_naive(run.dq, naive.dq, exact.dq);
    check_twice_naive(run.dk, naive.dk, exact.dk);
    check_twice_naive(run.dv, naive.dv, exact.dv);
    documents += !in.starts.empty(), long_rows += in.T > 128, short_rows += room(in) == 0;
  }
  CHECK(documents > 30);
  CHECK(long_rows > 10);
  CHECK(short_rows > 5);
}

TEST_CASE("of blocks that matter equally the later are chosen") {
  CompressedCase in;
  in.spec = make_spec(AttentionKind::nsa, 2, 1, 4);
  in.spec.pattern.compress_block = in.spec.pattern.compress_stride = in.spec.pattern.block = 4;
  in.spec.pattern.blocks = 5, in.T = 64;
  in.q.assign(64 * 8, 0.5), in.k.assign(16 * 4, 0.25), in.v = in.k;
  const Tensor choice = run_compressed(in, DType::f32, in.q).choice;
  const std::int32_t* last = choice.data<std::int32_t>() + 63 * 5;
  CHECK(std::vector<std::int32_t>(last, last + 5) == std::vector<std::int32_t>{0, 12, 13, 14, 15});
  const std::int32_t* early = choice.data<std::int32_t>() + 5 * 5;
  CHECK(std::vector<std::int32_t>(early, early + 3) == std::vector<std::int32_t>{0, 1, kNoChoice});
}

TEST_CASE("the newest queries alone get what all queries together get bit for bit") {
  for (std::uint64_t c = 0; c < 30; ++c) {
    Draw d(92, c);
    CompressedCase in = draw_compressed(d, 200);
    in.starts.clear();
    CAPTURE(c, describe(in));
    const std::int64_t D = in.spec.head_dim, N = d.integer(0, in.T);
    const Shape keys{in.B, in.spec.n_kv_heads, room(in), D};
    const Variable q(tensor_of(in.q, {in.B, in.T, in.spec.n_heads * D}, DType::f32)),
        k(tensor_of(in.k, keys, DType::f32)), v(tensor_of(in.v, keys, DType::f32));
    Tensor all_blocks, blocks;
    const Tensor all = compressed_attention(q, k, v, in.spec, in.T, {}, &all_blocks).value();
    const Variable newest(q.value().slice(1, in.T - N, in.T));
    CHECK(same_bits(compressed_attention(newest, k, v, in.spec, in.T, {}, &blocks).value(),
                    all.slice(1, in.T - N, in.T)));
    CHECK(same_bits(blocks, all_blocks.slice(2, in.T - N, in.T)));
  }
}

TEST_CASE("blocks chosen for groups of query heads: forward and backward and a cache") {
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(93, c);
    ReferenceInput in;
    in.spec = make_spec(AttentionKind::moba, 0, d.integer(1, 3), 2 * d.integer(1, 9));
    in.spec.n_heads = in.spec.n_kv_heads * d.integer(1, 3);
    in.spec.pattern.block = d.integer(1, 20), in.spec.pattern.blocks = d.integer(1, 4);
    in.rope.rotary_dims = d.chance(0.6) ? in.spec.head_dim : 0;
    in.B = d.integer(1, 2), in.T = d.integer(1, 150);
    if (c % 2 == 1) fill_documents(in, d);
    fill_values(in, d, "normal");
    CAPTURE(c, in.B, in.T, in.spec.n_heads, in.spec.n_kv_heads, in.spec.pattern.block, in.spec.pattern.blocks);
    const std::int64_t Hkv = in.spec.n_kv_heads, n = in.spec.pattern.blocks, G = in.spec.group();
    const auto start = [&](std::int64_t b, std::int64_t i) {
      return in.document_starts.empty() ? 0 : in.document_starts[static_cast<std::size_t>(b * in.T + i)];
    };
    Tensor choice = full({in.B, Hkv, in.T, n}, kNoChoice, DType::i32);
    std::vector<std::set<std::int64_t>> chosen;
    for (std::int64_t x = 0; x < in.B * Hkv * in.T; ++x) {
      const std::int64_t i = x % in.T, own = (i - start(x / in.T / Hkv, i)) / in.spec.pattern.block;
      std::set<std::int64_t> blocks{own};
      while (static_cast<std::int64_t>(blocks.size()) < std::min(n, own + 1)) blocks.insert(d.integer(0, own));
      std::copy(blocks.begin(), blocks.end(), choice.data<std::int32_t>() + x * n);
      chosen.push_back(blocks);
    }
    const auto sees = [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
      return j >= start(b, i) && chosen[static_cast<std::size_t>((b * Hkv + h / G) * in.T + i)].count(
                                     (j - start(b, i)) / in.spec.pattern.block) > 0;
    };
    const std::vector<double> dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const DenseResult exact = DenseOracle(in, sees).run(dout);
    const DType dtype = c % 3 == 0 ? DType::f32 : DType::f64;
    const double bound = dtype == DType::f64 ? 1e-12 : 1e-5;
    const Tensor values = tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype);
    const Variable qkv = Variable::leaf(values), out = pattern_attention(qkv, choice, inputs_of(in));
    backward(out, tensor_of(dout, out.shape(), dtype));
    CHECK(difference(out.value(), exact.out) <= bound);
    CHECK(difference(qkv.grad(), exact.dqkv) <= bound);
    if (!in.document_starts.empty()) continue;
    PatternCache cache(in.spec, in.rope, in.B, dtype, in.T);
    const std::int64_t prompt = d.integer(1, in.T);
    for (std::int64_t t = 0, end = prompt; t < in.T; t = end, end = std::min(in.T, end + d.integer(1, 3))) {
      const Tensor step = cache.step(values.slice(1, t, end), choice.slice(2, t, end));
      CHECK(relative_difference(step, out.value().slice(1, t, end)) <= bound);
    }
  }
}

TEST_CASE("a choice of another shape or dtype is an error that says what was wanted") {
  const AttentionSpec spec = make_spec(AttentionKind::nsa, 4, 2, 8);
  const Tensor qkv = full({2, 6, 64}, 1, DType::f32);
  const auto says = [&](const Shape& shape, DType dtype = DType::i32) {
    return error_text([&] { pattern_attention(Variable(qkv), full(shape, 0, dtype), {spec, {}, {}}); });
  };
  for (const Shape& wrong : {Shape{2, 2, 5, 3}, Shape{1, 2, 6, 3}, Shape{2, 3, 6, 3}, Shape{2, 2, 6}})
    CHECK(contains(says(wrong), "want i32 (2, 1 or 2 or 4, 6, n)"));
  CHECK(contains(says({2, 2, 6, 0}), "n), n >= 1 blocks of the document"));
  CHECK(contains(says({2, 2, 6, 3}, DType::f32), "of f32"));
  for (const std::int64_t heads : {1, 2, 4}) CHECK(says({2, heads, 6, 3}).empty());
}

TEST_CASE("a choice of buckets holds one for each position") {
  const AttentionSpec spec = make_spec(AttentionKind::hash, 4, 2, 8);
  const Tensor qkv = full({2, 6, 64}, 1, DType::f32);
  for (const std::int64_t n : {0, 2}) {
    const Tensor wrong = full({2, 4, 6, n}, 0, DType::i32);
    PatternCache cache(spec, {}, 2, DType::f32, 6);
    for (const std::string& text : {error_text([&] {
                                      pattern_attention(Variable(qkv), wrong, {spec, {}, {}});
                                    }),
                                    error_text([&] { cache.step(qkv, wrong); })})
      CHECK(contains(text, "want i32 (2, 1 or 2 or 4, 6, 1), the bucket of each position"));
  }
}

TEST_CASE("a transposed choice shows the keys that its contiguous copy shows") {
  const AttentionSpec spec = make_spec(AttentionKind::dsa, 2, 2, 8);
  const std::int64_t T = 6, n = 2;
  Tensor by_query = full({1, T, 2, n}, kNoChoice, DType::i32);  // each query sees the first key or itself
  for (std::int64_t x = 0; x < 2 * T; ++x)
    by_query.data<std::int32_t>()[x * n] = x % 3 == 0 ? 0 : static_cast<std::int32_t>(x / 2);
  const Tensor strided = by_query.transpose(1, 2), dense = strided.contiguous();
  REQUIRE(!strided.is_contiguous());
  const Tensor values = Draw(195, 0).normal({1, T, 48}).to(DType::f32);
  std::vector<Tensor> outs, grads;
  for (const Tensor& choice : {strided, dense}) {
    const Variable qkv = Variable::leaf(values.clone()), out = pattern_attention(qkv, choice, {spec, {}, {}});
    backward(sum(mul(out, out)));
    outs.push_back(out.value()), grads.push_back(qkv.grad());
    outs.push_back(PatternCache(spec, {}, 1, DType::f32, T).step(values, choice));
  }
  CHECK(same_bits(outs[0], outs[2]));
  CHECK(same_bits(outs[1], outs[3]));
  CHECK(same_bits(grads[0], grads[1]));
  CHECK(same_bits(outs[0], outs[1]));
}

TEST_CASE("nsa's operations round once in fp32 and bf16") {
  for (const OpCase& op : nsa_op_cases()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const OpReport r = check_case_precision(op, dtype, 40);
      CAPTURE(op.name, name_of(dtype), r.worst, r.yardstick, r.where);
      CHECK(r.worst <= 2 * r.yardstick + (dtype == DType::f32 ? 1e-5 : 1e-6));
    }
  }
}

TEST_CASE("nsa's operations say what is wrong with their numbers") {
  AttentionSpec spec = make_spec(AttentionKind::nsa, 2, 1, 4);
  spec.pattern.compress_block = 6, spec.pattern.compress_stride = 4, spec.pattern.block = 8, spec.pattern.blocks = 2;
  const Variable x(zeros({1, 12, 4}, DType::f32)), positions(zeros({6, 4}, DType::f32));
  CHECK_THROWS_AS(compress_rows(x, positions, 1, spec.pattern), Error);
  spec.pattern.compress_stride = 3;
  const Variable rows = compress_rows(x, positions, 1, spec.pattern);
  CHECK(rows.shape() == Shape{1, 1, 3, 24});
  const Variable q(zeros({1, 12, 8}, DType::f32)), k(zeros({1, 1, 3, 4}, DType::f32));
  Tensor choice;
  CHECK(compressed_attention(q, k, k, spec, 12).shape() == q.shape());
  CHECK_THROWS_AS(compressed_attention(q, k, k, spec, 12, {}, &choice), Error);  // 8 is no multiple of 3
  CHECK_THROWS_AS(compressed_attention(q, k, k, spec, 20), Error);               // keys of fewer positions
  CHECK_THROWS_AS(gate_branches(q, q, q, k, 2), Error);
  CHECK_THROWS_AS(join_features(q, k), Error);
}
