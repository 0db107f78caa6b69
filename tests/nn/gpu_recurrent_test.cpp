// Models with recurrent layers on a GPU against the same weights on the CPU: loss, gradients, generation.
#include <algorithm>
#include <cmath>
#include <memory>

#include "nn/generation.h"
#include "small_models.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"

using namespace sieve;
using namespace sieve::test;

namespace {

std::unique_ptr<Decoder> recurrent_model(const Stream& stream, AttentionKind type, DType compute) {
  ModelConfig c;
  c.n_layers = 2, c.d_model = 64, c.n_heads = 4, c.n_kv_heads = 2, c.d_ff = 96;
  AttentionKindConfig kind;
  kind.type = type;
  if (type == AttentionKind::sparsek) kind.k = 4, kind.window = 4, kind.linear = true;
  c.attention.kinds["a"] = kind;
  c.attention.pattern = {"a"};
  c.resolve(61, 256);
  c.init.std = 0.1;
  auto model = std::make_unique<Decoder>(c, DecoderOptions{.compute = compute, .seed = 11, .recompute = {}});
  for (const ParameterPtr& p : model->parameters()) {  // gates away from the start, so that the linear part counts
    if (p->name.find("linear.gate") == std::string::npos) continue;
    p->master.fill(0.5);
    refresh_value(*p);
  }
  place_parameters(model->parameters(), stream);
  return model;
}

double relative(const Tensor& got, const Tensor& wanted) {
  return max_difference(got.to(Stream{}), wanted) / std::max(1e-30, max_abs(wanted));
}

}  // namespace

TEST_CASE("recurrent layers on a GPU: loss and gradients are the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Tensor starts = zeros({2, 150}, DType::i32);
  for (std::int64_t t = 61; t < 150; ++t) starts.data<std::int32_t>()[t] = 61;
  const TokenBatch batch{random_tokens(2, 150, 61, 1), random_tokens(2, 150, 61, 2), starts};
  for (const AttentionKind type : {AttentionKind::linear, AttentionKind::gla, AttentionKind::sparsek}) {
    for (const DType compute : {DType::f32, DType::bf16}) {
      if (type == AttentionKind::sparsek && compute == DType::bf16) continue;  // roundings choose other keys
      const double bound = compute == DType::f32 ? 1e-4 : 0.1;
      const auto here = recurrent_model(Stream{}, type, compute), there = recurrent_model(gpu_stream(), type, compute);
      const Variable wanted = here->loss_sum(batch), got = there->loss_sum(batch);
      INFO(kAttentionKindNames[static_cast<std::size_t>(type)] << " " << name_of(compute));
      CHECK(got.value().to(Stream{}).item() == Approx(wanted.value().item()).epsilon(bound / 10));
      backward(wanted);
      backward(got);
      for (std::size_t i = 0; i < here->parameters().size(); ++i) {
        const Parameter &p = *here->parameters()[i], &q = *there->parameters()[i];
        INFO(p.name);
        CHECK(relative(q.value.grad(), p.value.grad()) <= bound);
      }
    }
  }
}

TEST_CASE("recurrent layers on a GPU: generation equals the full forward", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const NoGrad no_grad;
  for (const AttentionKind type : {AttentionKind::linear, AttentionKind::gla, AttentionKind::sparsek}) {
    const auto here = recurrent_model(Stream{}, type, DType::f32),
               there = recurrent_model(gpu_stream(), type, DType::f32);
    const Tensor tokens = random_tokens(2, 100, 61, 4), full = here->logits(tokens);
    Generation generation(*there, 2, 100);
    INFO(kAttentionKindNames[static_cast<std::size_t>(type)]);
    CHECK(generation_error(generation, tokens, full, 70) <= 1e-4 * max_abs(full));
  }
}

TEST_CASE("recurrent layers on a GPU: SparseK with a linear state in bf16 learns and repeats its bits", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const TokenBatch batch{random_tokens(2, 300, 61, 1), random_tokens(2, 300, 61, 2), {}};
  const auto here = recurrent_model(Stream{}, AttentionKind::sparsek, DType::bf16),
             one = recurrent_model(gpu_stream(), AttentionKind::sparsek, DType::bf16),
             two = recurrent_model(gpu_stream(), AttentionKind::sparsek, DType::bf16);
  const Variable wanted = here->loss_sum(batch), got = one->loss_sum(batch), again = two->loss_sum(batch);
  CHECK(got.value().to(Stream{}).item() == Approx(wanted.value().item()).epsilon(0.02));
  CHECK(got.value().to(Stream{}).item() == again.value().to(Stream{}).item());
  backward(got);
  backward(again);
  for (std::size_t i = 0; i < one->parameters().size(); ++i) {
    const Parameter &p = *one->parameters()[i], &q = *two->parameters()[i];
    INFO(p.name);
    CHECK(same_bits(p.value.grad().to(Stream{}), q.value.grad().to(Stream{})));
    CHECK(max_abs(p.value.grad().to(Stream{})) > 0);
  }
}
