// What type nsa has of its own on a GPU: against the CPU in fp32, against the definitions in bf16.
#include <algorithm>

#include "dense_oracle.h"
#include "gpu_attention.h"
#include "nsa_cases.h"
#include "nsa_ops.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

long different_lists(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  const std::int64_t n = a.size(3);
  const std::int32_t *x = a.data<std::int32_t>(), *y = b.data<std::int32_t>();
  long different = 0;
  for (std::int64_t row = 0; row < a.numel() / n; ++row)
    different += !std::equal(x + row * n, x + (row + 1) * n, y + row * n);
  return different;
}

CompressedCase sized(std::int64_t B, std::int64_t T, std::int64_t H, std::int64_t Hkv, std::int64_t D,
                     const PatternSpec& p, bool documents, std::uint64_t seed) {
  Draw d(96, seed);
  CompressedCase in;
  in.spec = make_spec(AttentionKind::nsa, H, Hkv, D);
  in.spec.pattern = p, in.B = B, in.T = T;
  if (documents) {
    ReferenceInput rows;
    rows.B = B, rows.T = T;
    fill_documents(rows, d);
    in.starts = rows.document_starts;
  }
  in.q = draw_bf16(d, B * T * H * D, 1.5);
  in.k = draw_bf16(d, B * Hkv * room(in) * D, 1), in.v = draw_bf16(d, B * Hkv * room(in) * D, 1);
  return in;
}

PatternSpec compression(std::int64_t l, std::int64_t s, std::int64_t block, std::int64_t blocks) {
  PatternSpec p;
  p.compress_block = l, p.compress_stride = s, p.block = block, p.blocks = blocks;
  return p;
}

// Two runs of the same on the GPU, and one on the CPU.
void check_against_cpu(const CompressedCase& in, DType dtype, double bound) {
  INFO(describe(in) << " " << name_of(dtype));
  Draw d(97, static_cast<std::uint64_t>(in.T));
  const std::vector<double> dout = draw_values(d, static_cast<std::int64_t>(in.q.size()));
  const CompressedRun cpu = run_compressed(in, dtype, dout), got = run_compressed(in, dtype, dout, gpu_stream()),
                      again = run_compressed(in, dtype, dout, gpu_stream());
  CHECK(relative_difference(got.out, cpu.out) <= bound);
  CHECK(relative_difference(got.dq, cpu.dq) <= bound);
  CHECK(relative_difference(got.dk, cpu.dk) <= bound);
  CHECK(relative_difference(got.dv, cpu.dv) <= bound);
  const long lists = cpu.choice.numel() / cpu.choice.size(3);
  CHECK(different_lists(got.choice, cpu.choice) <= 1 + lists / 200);
  CHECK(same_bits(got.out, again.out));
  CHECK(same_bits(got.dq, again.dq));
  CHECK(same_bits(got.dk, again.dk));
  CHECK(same_bits(got.dv, again.dv));
  CHECK(same_bits(got.choice, again.choice));
}

}  // namespace

TEST_CASE("GPU: nsa's operations are those of the CPU in fp32", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const OpCase& op : nsa_op_cases()) {
    const OpReport report = check_case_on_device(op, gpu_stream(), 80);
    INFO(op.name << " " << report.where);
    CHECK(report.worst <= 1e-5);
  }
}

TEST_CASE("GPU: rows of compressed keys and gates in wide loads are those of the CPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 24; ++c) {
    Draw d(98, c);
    const DType dtype = c % 2 == 0 ? DType::bf16 : DType::f32;
    const std::int64_t B = d.integer(1, 3), T = d.integer(1, 300), H = d.integer(1, 3), D = 8 * d.integer(1, 16);
    PatternSpec p = compression(0, d.integer(1, 16), 1, 1);
    p.compress_block = p.compress_stride * d.integer(1, 4);
    const Tensor starts = c % 3 == 0 ? draw_starts(d, B, T) : Tensor(), x = d.normal({B, T, H * D}).to(dtype),
                 places = d.normal({p.compress_block, D}).to(dtype), gates = d.normal({B, T, 3 * H}).to(dtype),
                 y = d.normal({B, T, H * D}).to(dtype);
    const Tensor seed =
        d.normal({B, H, compressed_count(T, p.compress_block, p.compress_stride), p.compress_block * D});
    INFO("case " << c << " B" << B << " T" << T << " H" << H << " D" << D << " l " << p.compress_block << " s "
                 << p.compress_stride << " " << name_of(dtype));
    const auto run = [&](const Stream& stream) {
      const auto leaf = [&](const Tensor& t) { return Variable::leaf(t.to(stream)); };
      const Variable a = leaf(x), e = leaf(places), g = leaf(gates), b = leaf(y);
      const Variable rows = compress_rows(a, e, H, p, starts.defined() ? starts.to(stream) : starts);
      backward(rows, seed.to(dtype).to(stream));
      const Variable a2 = leaf(x), sum = gate_branches(a2, b, leaf(y), g, H);
      backward(sum, y.to(stream));
      std::vector<Tensor> all;
      for (const Tensor& t : {rows.value(), a.grad(), e.grad(), sum.value(), a2.grad(), b.grad(), g.grad()})
        all.push_back(on_host(t));
      return all;
    };
    const std::vector<Tensor> cpu = run({}), got = run(gpu_stream()), again = run(gpu_stream());
    for (std::size_t part = 0; part < cpu.size(); ++part) {
      INFO("part " << part);
      CHECK(relative_difference(got[part], cpu[part]) <= (dtype == DType::bf16 ? 5e-3 : 1e-5));
      CHECK(same_bits(got[part], again[part]));
    }
  }
}

TEST_CASE("GPU: attention over compressed keys and its choice follow their definition", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 60; ++c) {
    Draw d(95, c);
    const CompressedCase in = draw_compressed(d, c % 4 == 0 ? 300 : 140, c % 3 == 0 ? 0 : c % 3 == 1 ? 64 : 128);
    INFO("case " << c << " " << describe(in));
    const std::vector<double> dout = draw_values(d, static_cast<std::int64_t>(in.q.size()));
    const CompressedResult exact = CompressedOracle(in, room(in)).run(dout),
                           naive = CompressedOracle(in, room(in), true).run(dout);
    const CompressedRun fine = run_compressed(in, DType::f32, dout, gpu_stream()),
                        coarse = run_compressed(in, DType::bf16, dout, gpu_stream());
    const auto off = [](const Tensor& got, const std::vector<double>& wanted) {
      return relative_difference(got, from_values<double>(std::span(wanted), got.shape()));
    };
    CHECK(off(fine.out, exact.out) <= 1e-5);
    CHECK(off(fine.dq, exact.dq) <= 1e-5);
    CHECK(off(fine.dk, exact.dk) <= 1e-5);
    CHECK(off(fine.dv, exact.dv) <= 1e-5);
    CHECK(wrong_choices(fine.choice, exact, 1e-4) == 0);
    check_twice_naive(coarse.out, naive.out, exact.out);
    check_twice_naive(coarse.dq, naive.dq, exact.dq);
    check_twice_naive(coarse.dk, naive.dk, exact.dk);
    check_twice_naive(coarse.dv, naive.dv, exact.dv);
    CHECK(wrong_choices(coarse.choice, exact, 1e-3) == 0);  // q and k are bf16 numbers, products fp32
  }
}

TEST_CASE("GPU: attention over many compressed keys is that of the CPU and of itself", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const PatternSpec usual = compression(32, 16, 64, 16), dense = compression(4, 4, 4, 6);
  check_against_cpu(sized(2, 3000, 6, 6, 64, usual, false, 1), DType::bf16, 2e-2);
  check_against_cpu(sized(2, 2500, 6, 2, 64, usual, true, 2), DType::bf16, 2e-2);
  check_against_cpu(sized(1, 2100, 4, 1, 128, usual, true, 3), DType::bf16, 2e-2);
  check_against_cpu(sized(32, 300, 8, 8, 64, usual, false, 4), DType::bf16, 2e-2);  // keys' sums in one piece
  check_against_cpu(sized(1, 2000, 4, 2, 64, usual, true, 5), DType::f32, 2e-5);
  check_against_cpu(sized(1, 6000, 1, 1, 64, dense, false, 6), DType::bf16,
                    2e-2);  // choices 32 and 16 queries at a time
  check_against_cpu(sized(1, 9000, 2, 1, 64, dense, false, 7), DType::bf16, 2e-2);
}

TEST_CASE("GPU: of blocks that matter equally the later are chosen and one token chooses as a prompt", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const std::int64_t D : {4, 64}) {
    CompressedCase in;
    in.spec = make_spec(AttentionKind::nsa, 2, 1, D);
    in.spec.pattern = compression(4, 4, 4, 5), in.T = 64;
    in.q.assign(static_cast<std::size_t>(64 * 2 * D), 0.5), in.k.assign(static_cast<std::size_t>(16 * D), 0.25);
    in.v = in.k;
    const Tensor choice = run_compressed(in, DType::bf16, in.q, gpu_stream()).choice;
    const std::int32_t *last = choice.data<std::int32_t>() + 63 * 5, *early = choice.data<std::int32_t>() + 5 * 5;
    CHECK(std::vector<std::int32_t>(last, last + 5) == std::vector<std::int32_t>{0, 12, 13, 14, 15});
    CHECK(std::vector<std::int32_t>(early, early + 3) == std::vector<std::int32_t>{0, 1, kNoChoice});
  }
  const CompressedCase in = sized(1, 1000, 4, 2, 64, compression(8, 4, 16, 7), false, 8);
  const Shape keys{1, 2, room(in), 64};
  const NoGrad no_grad;
  const Variable k(on_gpu(tensor_of(in.k, keys, DType::bf16))), v(on_gpu(tensor_of(in.v, keys, DType::bf16)));
  const Tensor q = on_gpu(tensor_of(in.q, {1, 1000, 256}, DType::bf16));
  Tensor all, one;
  const Tensor out = on_host(compressed_attention(Variable(q), k, v, in.spec, 1000, {}, &all).value());
  for (const std::int64_t N : {1, 7, 64, 65, 300}) {
    INFO("the last " << N);
    const Variable newest(q.slice(1, 1000 - N, 1000));
    CHECK(same_bits(on_host(compressed_attention(newest, k, v, in.spec, 1000, {}, &one).value()),
                    out.slice(1, 1000 - N, 1000)));
    CHECK(same_bits(on_host(one), on_host(all).slice(2, 1000 - N, 1000)));
  }
}
