// Models of type nsa on a GPU against the same weights on the CPU: loss, gradients, generation.
#include <algorithm>
#include <memory>

#include "nn/generation.h"
#include "small_models.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// blocks: 3 are those that need no choice.
std::unique_ptr<Decoder> nsa_model(const Stream& stream, DType compute, std::int64_t blocks, std::int64_t d_model) {
  ModelConfig c;
  c.n_layers = 2, c.d_model = d_model, c.n_heads = 4, c.n_kv_heads = 2, c.d_ff = 96;
  AttentionKindConfig kind;
  kind.type = AttentionKind::nsa;
  kind.window = 10;
  kind.pattern.compress_stride = 4, kind.pattern.compress_block = 8;
  kind.pattern.block = 8, kind.pattern.blocks = blocks;
  c.attention.kinds["a"] = kind;
  c.attention.pattern = {"a"};
  c.resolve(61, 256);
  c.init.std = 0.1;
  auto model = std::make_unique<Decoder>(c, DecoderOptions{.compute = compute, .seed = 11, .recompute = {}});
  place_parameters(model->parameters(), stream);
  return model;
}

double relative(const Tensor& got, const Tensor& wanted) {
  return max_difference(got.to(Stream{}), wanted) / max_abs(wanted);
}

// This bias adds the same to all logits of a query: its gradient is 0 but for rounding, which differs.
bool shifts_logits(const Parameter& p) { return p.name.ends_with(".keys.compress.down.bias"); }

TokenBatch packed_batch() {
  Tensor starts = zeros({2, 150}, DType::i32);
  for (std::int64_t t = 61; t < 150; ++t) starts.data<std::int32_t>()[t] = 61;
  return {random_tokens(2, 150, 61, 1), random_tokens(2, 150, 61, 2), starts};
}

void check_training(DType compute, std::int64_t blocks, std::int64_t d_model, double bound) {
  const TokenBatch batch = packed_batch();
  const auto here = nsa_model(Stream{}, compute, blocks, d_model),
             there = nsa_model(gpu_stream(), compute, blocks, d_model);
  const Variable wanted = here->loss_sum(batch), got = there->loss_sum(batch);
  INFO(name_of(compute) << " blocks " << blocks << " d_model " << d_model);
  CHECK(got.value().to(Stream{}).item() == Approx(wanted.value().item()).epsilon(bound / 10));
  backward(wanted);
  backward(got);
  double largest = 0;
  for (const ParameterPtr& p : here->parameters()) largest = std::max(largest, max_abs(p->value.grad()));
  for (std::size_t i = 0; i < here->parameters().size(); ++i) {
    const Parameter &p = *here->parameters()[i], &q = *there->parameters()[i];
    INFO(p.name);
    if (shifts_logits(p))
      CHECK(std::max(max_abs(q.value.grad().to(Stream{})), max_abs(p.value.grad())) <= bound / 50 * largest);
    else CHECK(relative(q.value.grad(), p.value.grad()) <= bound);
  }
}

}  // namespace

TEST_CASE("nsa on a GPU: loss and gradients are the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  check_training(DType::f32, 5, 64, 1e-4);
  check_training(DType::f32, 3, 256, 1e-4);
  check_training(DType::bf16, 3, 64, 0.1);  // rounding would move choices
  check_training(DType::bf16, 3, 256, 0.1);
}

TEST_CASE("nsa on a GPU: generation equals the full forward", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const NoGrad no_grad;
  const auto here = nsa_model(Stream{}, DType::f32, 5, 64), there = nsa_model(gpu_stream(), DType::f32, 5, 64);
  const Tensor tokens = random_tokens(2, 100, 61, 4), full = here->logits(tokens);
  Generation generation(*there, 2, 100);
  CHECK(generation_error(generation, tokens, full, 70) <= 1e-4 * max_abs(full));
}
