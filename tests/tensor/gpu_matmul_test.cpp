// Matrix products and cross entropy on a GPU against their CPU twins. bf16 results: within half of what rounding the
// largest of them costs (2^-9), and a unit of the element itself; fp32 sums of a few hundred terms in another order:
// 3e-5 of the largest.
#include <cmath>

#include "core/build.h"
#include "tensor/gpu_case.h"
#include "tensor/kernels/cuda/matmul_tuning.h"

using namespace sieve;
using namespace sieve::test;

namespace {

constexpr double kSums = 3, kRoundedSums = 100;

// A product of random extents with everything that may be fused. Half of the shapes are what the library likes.
std::vector<Tensor> product(Draw& draw, DType in, DType out, Place& place, bool large) {
  const bool smooth = draw.chance(0.5);
  const auto extent = [&] { return smooth ? 8 * draw.integer(1, 40) : draw.extent(90); };
  const std::int64_t M = large ? (few_shapes ? 128 : 512) : extent(), N = large ? (few_shapes ? 264 : 768) : extent();
  const std::int64_t K = large ? (few_shapes ? 200 : 640) : draw.chance(0.05) ? 0 : extent();
  const std::int64_t pad = draw.chance(0.3) ? (smooth ? 8 : draw.integer(1, 5)) : 0;
  const bool ta = draw.chance(0.5), tb = draw.chance(0.5), bias = draw.chance(0.4), add = draw.chance(0.4);
  const auto epilogue = large ? Epilogue::gelu : static_cast<Epilogue>(draw.integer(0, 2));
  const bool keep = epilogue == Epilogue::gelu && draw.chance(0.7), sums = draw.chance(0.5);
  const double beta = draw.chance(0.2) ? 0.5 : 0;

  const Tensor a = place.in(input(draw, {ta ? K : M, (ta ? M : K) + pad}, in));
  const Tensor b = place.in(input(draw, {tb ? N : K, (tb ? K : N) + pad}, in));
  const Tensor padded = input(draw, {M, N + pad}, out);
  Tensor old = padded.clone();
  if (beta == 0) old.slice(1, 0, N).fill(std::nan(""));  // must not be read
  const Tensor c = place.inout(old);
  const Tensor bias_N = bias ? place.in(input(draw, {N}, in)) : Tensor();
  const Tensor add_MN = add ? place.in(input(draw, {M, N + pad}, out)) : Tensor();
  const Tensor pre = keep                                  ? place.inout(padded)
                     : epilogue == Epilogue::gelu_backward ? place.in(input(draw, {M, N + pad}, out))
                                                           : Tensor();
  const Tensor a_sum = sums ? place.out({M}, compute_dtype(in)) : Tensor();
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  launch(place.stream(), MatmulArgs{.a = a.raw(),
                                    .b = b.raw(),
                                    .c = c.raw(),
                                    .bias_N = raw(bias_N),
                                    .M = M,
                                    .N = N,
                                    .K = K,
                                    .lda = a.size(1),
                                    .ldb = b.size(1),
                                    .ldc = N + pad,
                                    .transpose_a = ta,
                                    .transpose_b = tb,
                                    .alpha = bias ? 1 : 0.25,
                                    .beta = beta,
                                    .dtype = in,
                                    .c_dtype = out,
                                    .add_MN = raw(add_MN),
                                    .epilogue = epilogue,
                                    .pre_MN = raw(pre),
                                    .a_sum_M = raw(a_sum)});
  std::vector<Tensor> results{c};
  if (keep) results.push_back(pre);
  if (sums) results.push_back(a_sum);
  return results;
}

Twin product_into(DType out) {
  return [out](Draw& draw, DType in, Place& place, bool large) { return product(draw, in, out, place, large); };
}

// dlogits_dtype: the logits' own, or bf16.
std::vector<Tensor> cross_entropy(Draw& draw, DType t, Place& place, bool large) {
  const double u = draw.uniform();
  const std::int64_t V = large     ? 50304
                         : u < 0.1 ? draw.integer(100000, 140000)  // too long for shared memory
                         : u < 0.3 ? draw.integer(1000, 60000)
                         : u < 0.6 ? 8 * draw.integer(1, 100)
                                   : draw.extent(200, false);
  const std::int64_t R = large ? 12 : u < 0.3 ? draw.integer(1, 3) : draw.extent(40);
  const std::int64_t pad = draw.chance(0.5) ? 0 : draw.chance(0.5) ? 8 : draw.integer(1, 5), ld = V + pad;
  const bool in_place = draw.chance(0.4), narrow = !in_place && t == DType::f32 && draw.chance(0.5);
  const DType to = narrow ? DType::bf16 : t;
  const Tensor host = input(draw, {R, ld}, t, 2);
  if (R > 1 && draw.chance(0.2)) Tensor(host).slice(0, 0, 1).slice(1, 0, V / 2).fill(-INFINITY);  // masked
  const Tensor logits = in_place ? place.inout(host) : place.in(host);
  Tensor ids = draw.ids({R}, 0, V - 1);
  for (std::int32_t& id : ids.span<std::int32_t>())
    if (draw.chance(0.15)) id = -1;
  if (R > 1) ids.span<std::int32_t>()[0] = static_cast<std::int32_t>(V - 1);
  const Tensor targets = place.in(ids), losses = place.out({R}, compute_dtype(t));
  const Tensor factor = place.in(draw.normal({1}).to(compute_dtype(t)).clone());
  const bool gradients = in_place || draw.chance(0.8);
  const Tensor dlogits = in_place ? logits : place.out({R, ld}, to);
  launch(place.stream(), CrossEntropyArgs{.logits_RV = logits.raw(),
                                          .targets_R = targets.data<std::int32_t>(),
                                          .losses_R = losses.raw(),
                                          .dlogits_RV = gradients ? dlogits.raw() : nullptr,
                                          .R = R,
                                          .V = V,
                                          .ld = ld,
                                          .grad_scale = 0.5,
                                          .dtype = t,
                                          .dlogits_dtype = to,
                                          .grad_factor = draw.chance(0.5) ? factor.raw() : nullptr});
  if (!gradients) return {losses};
  return {losses, dlogits};
}

}  // namespace

SIEVE_TWIN_CASE("products in fp32 and fp64 equal their CPU twins, with all that may be fused") {
  check_twin([](Draw& draw, DType t, Place& place, bool large) { return product(draw, t, t, place, large); }, 2000,
             kSums, {DType::f32, DType::f64});
}

SIEVE_TWIN_CASE("products of bf16 equal their CPU twins, with all that may be fused") {
  check_twin(product_into(DType::bf16), 2002, kRoundedSums, {DType::bf16});
  check_twin(product_into(DType::f32), 2004, kSums, {DType::bf16});
  if constexpr (build::with_cuda) {
    cuda::set_matmul_fused_sums(true);
    check_twin(product_into(DType::f32), 2005, kSums, {DType::bf16});
    cuda::set_matmul_fused_sums(false);
  }
}

SIEVE_TWIN_CASE("cross entropy equals its CPU twin, in place and into another dtype") {
  check_twin(cross_entropy, 2006, 2);
}

TEST_CASE("GPU: a target beyond the vocabulary shows as NaN in its row alone", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  Tensor targets = zeros({3}, DType::i32);
  targets.data<std::int32_t>()[1] = 7;
  const Tensor logits = zeros({3, 7}, DType::f32).to(gpu_stream()), there = targets.to(gpu_stream());
  const Tensor losses = empty({3}, DType::f32, gpu_stream()), dlogits = empty({3, 7}, DType::f32, gpu_stream());
  launch(gpu_stream(), CrossEntropyArgs{.logits_RV = logits.raw(),
                                        .targets_R = there.data<std::int32_t>(),
                                        .losses_R = losses.raw(),
                                        .dlogits_RV = dlogits.raw(),
                                        .R = 3,
                                        .V = 7,
                                        .ld = 7});
  const Values loss = values_of(losses.to(Stream{})), slope = values_of(dlogits.to(Stream{}));
  for (std::size_t r = 0; r < 3; ++r) {
    CHECK(std::isnan(loss[r]) == (r == 1));
    for (std::size_t v = 0; v < 7; ++v) CHECK(std::isnan(slope[r * 7 + v]) == (r == 1));
  }
}

TEST_CASE("GPU: timing the library's proposals changes no result, nor C while it is an input", "[gpu]") {
  SIEVE_NEEDS_GPU();
  if constexpr (build::with_cuda) {
    const std::int64_t n = 1032;  // above the size from which products are timed
    Draw draw(2008, 0);
    const Tensor a = input(draw, {n, n}, DType::bf16), b = input(draw, {n, n}, DType::bf16);
    const Tensor old = input(draw, {n, n}, DType::f32);
    const auto multiply = [&](const Stream& stream) {
      const Tensor x = a.to(stream), y = b.to(stream), c = old.clone().to(stream);
      const Tensor sums = empty({n}, DType::f32, stream);
      launch(stream, MatmulArgs{.a = x.raw(),
                                .b = y.raw(),
                                .c = c.raw(),
                                .M = n,
                                .N = n,
                                .K = n,
                                .lda = n,
                                .ldb = n,
                                .ldc = n,
                                .transpose_a = true,
                                .beta = 1,
                                .dtype = DType::bf16,
                                .c_dtype = DType::f32,
                                .a_sum_M = sums.raw()});
      return std::vector{c.to(Stream{}), sums.to(Stream{})};
    };
    const auto wanted = multiply({});
    for (const bool fused : {true, false}) {
      cuda::set_matmul_tuning(true);
      cuda::set_matmul_fused_sums(fused);
      for (int again = 0; again < 2; ++again) {
        const auto got = multiply(gpu_stream());
        CHECK(near_twin(got[0], wanted[0], DType::bf16, kSums));
        CHECK(near_twin(got[1], wanted[1], DType::bf16, kSums));
      }
    }
    cuda::set_matmul_tuning(false);
    cuda::set_matmul_fused_sums(false);
  }
}
