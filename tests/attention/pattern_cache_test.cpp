// Generation of patterns on a GPU against the CPU's cache, which other tests hold against the full forward.
#include "attention/pattern_cache.h"

#include <algorithm>
#include <cmath>

#include "attention/pattern.h"
#include "attention_ops.h"
#include "gpu_attention.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace {

ReferenceInput draw_case(Draw& d, bool content) {
  ReferenceInput in;
  in.spec = draw_static_pattern(d);
  if (content) in.spec.kind = d.chance(0.5) ? AttentionKind::hash : AttentionKind::dsa;
  in.spec.n_kv_heads = d.integer(1, 2), in.spec.n_heads = in.spec.n_kv_heads * d.integer(1, 3);
  in.spec.head_dim = d.chance(0.5) ? 64 : 2 * d.integer(1, 40);
  in.spec.pattern.k = 7, in.spec.pattern.buckets = 4;
  in.rope.rotary_dims = d.chance(0.7) ? in.spec.head_dim / 2 * 2 : 0;
  in.B = d.integer(1, 2), in.T = d.integer(2, 90);
  fill_values(in, d, "normal");
  return in;
}

// Buckets of hash, or up to k keys of dsa, ascending.
Tensor draw_choice(const ReferenceInput& in, Draw& d) {
  const bool hash = in.spec.kind == AttentionKind::hash;
  if (!hash && in.spec.kind != AttentionKind::dsa) return {};
  const std::int64_t N = hash ? 1 : in.spec.pattern.k;
  Tensor choice = full({in.B, hash ? in.spec.n_heads : 1, in.T, N}, kNoChoice, DType::i32);
  std::int32_t* list = choice.data<std::int32_t>();
  for (std::int64_t x = 0; x < choice.numel() / N; ++x, list += N) {
    const std::int64_t i = x % in.T;
    std::int64_t n = 0;
    if (hash) list[n++] = static_cast<std::int32_t>(d.integer(0, 3));
    for (std::int64_t j = 0; j <= i && n < N; ++j)
      if (d.chance(0.3)) list[n++] = static_cast<std::int32_t>(j);
  }
  return choice;
}

Tensor generate(const ReferenceInput& in, const Tensor& choice, DType dtype, const Stream& stream,
                std::int64_t prompt) {
  const Tensor qkv = tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, dtype).to(stream);
  const Tensor lists = choice.defined() ? choice.to(stream) : choice;
  PatternCache cache(in.spec, in.rope, in.B, dtype, 0);
  Tensor out = empty({in.B, in.T, in.spec.n_heads * in.spec.head_dim}, dtype, stream);
  for (std::int64_t t = 0; t < in.T;) {
    const std::int64_t end = t == 0 ? prompt : t + 1;
    const Tensor y = cache.step(qkv.slice(1, t, end), lists.defined() ? lists.slice(2, t, end) : lists);
    out.slice(1, t, end).copy_from(y);
    t = end;
  }
  return out.to(Stream{});
}

double distance(const Tensor& a, const Tensor& b) {
  const auto x = values_of(a), y = values_of(b);
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
  return std::sqrt(sum);  // NaN stays NaN
}

}  // namespace

TEST_CASE("a cache that is told its tokens' choices gives what the forward gives with them") {
  for (std::uint64_t c = 0; c < 40; ++c) {
    Draw d(80, c);
    const ReferenceInput in = draw_case(d, true);
    const Tensor choice = draw_choice(in, d);
    const std::int64_t prompt = c % 4 == 0 ? 1 : d.integer(1, in.T);
    CAPTURE(c, describe(in), prompt);
    const Variable qkv(tensor_of(in.qkv, {in.B, in.T, in.spec.qkv_features()}, DType::f64));
    const Tensor wanted = pattern_attention(qkv, choice, inputs_of(in)).value();
    CHECK(relative_difference(generate(in, choice, DType::f64, {}, prompt), wanted) <= 1e-12);
  }
}

TEST_CASE("generation of patterns on a GPU gives what the CPU's cache gives", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 48; ++c) {
    Draw d(81, c);
    const ReferenceInput in = draw_case(d, c % 3 == 2);
    const Tensor choice = draw_choice(in, d);
    const std::int64_t prompt = c % 4 == 0 ? 1 : d.integer(1, in.T);
    INFO(c << " " << describe(in) << " prompt " << prompt);
    const Tensor exact = generate(in, choice, DType::f64, {}, prompt);
    CHECK(relative_difference(generate(in, choice, DType::f64, gpu_stream(), prompt), exact) <= 1e-12);
    CHECK(relative_difference(generate(in, choice, DType::f32, gpu_stream(), prompt), exact) <= 1e-5);
    const double size = std::sqrt(static_cast<double>(exact.numel())),
                 ours = distance(generate(in, choice, DType::bf16, gpu_stream(), prompt), exact) / size,
                 cpu = distance(generate(in, choice, DType::bf16, {}, 1), exact) / size;
    CHECK(ours <= 2 * cpu + 2e-5);
  }
}
