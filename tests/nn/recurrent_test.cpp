// Layers with a recurrent state in whole models: linear attention, gated linear attention, SparseK with a linear state.
#include <algorithm>
#include <cmath>
#include <set>

#include "nn/generation.h"
#include "nn/model_cost.h"
#include "small_models.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace {

AttentionKindConfig kind_of(AttentionKind type, Candidates candidates = Candidates::on_exit,
                            PositionRule positions = PositionRule::absolute) {
  AttentionKindConfig kind;
  kind.type = type;
  if (type == AttentionKind::sparsek) kind.k = 3, kind.window = 2, kind.linear = true;
  kind.candidates = candidates, kind.positions = positions;
  return kind;
}

ModelConfig small(Arch arch, const AttentionKindConfig& kind) { return two_layers(arch, kind, 80); }

// Gates away from the start, so that the linear part counts.
void open_gates(const Decoder& model) {
  for (const ParameterPtr& p : model.parameters()) {
    if (p->name.find("linear.gate") == std::string::npos) continue;
    p->master.fill(0.5);
    refresh_value(*p);
  }
}

const AttentionKindConfig kKinds[] = {kind_of(AttentionKind::linear), kind_of(AttentionKind::gla),
                                      kind_of(AttentionKind::sparsek),
                                      kind_of(AttentionKind::sparsek, Candidates::at_once),
                                      kind_of(AttentionKind::sparsek, Candidates::on_exit, PositionRule::none)};

}  // namespace

TEST_CASE("recurrent layers: gradients of a model agree with finite differences in fp64", "[nn]") {
  for (const AttentionKindConfig& kind : kKinds) {
    const Decoder model(small(Arch::llama, kind), {.compute = DType::f64, .seed = 5});
    open_gates(model);
    const TokenBatch batch{random_tokens(2, 16, 37, 1), random_tokens(2, 16, 37, 2), {}};
    INFO(kAttentionKindNames[static_cast<std::size_t>(kind.type)]);
    check_model_gradients(model, batch, 1e-5, 1e-6);
  }
}

TEST_CASE("recurrent layers: generation equals the full forward and holds a constant state", "[nn]") {
  for (const AttentionKindConfig& kind : kKinds) {
    for (const Arch arch : {Arch::gpt2, Arch::llama}) {
      const Decoder model(small(arch, kind), {.compute = DType::f32, .seed = 9});
      open_gates(model);
      const Tensor tokens = random_tokens(2, 80, 37, 4);
      const NoGrad no_grad;
      const Tensor full = model.logits(tokens);
      for (const std::int64_t prompt : {1, 3, 66}) {
        Generation generation(model, 2, 80);
        std::set<std::int64_t> sizes;
        double worst = 0;
        for (std::int64_t t = 0; t < 80;) {
          const std::int64_t end = t == 0 ? prompt : std::min<std::int64_t>(80, t + (t % 7 == 0 ? 2 : 1));
          const Tensor last = generation.append(tokens.slice(1, t, end).contiguous());
          for (std::int64_t b = 0; b < 2; ++b)
            for (std::int64_t v = 0; v < 37; ++v)
              worst = std::max(worst, static_cast<double>(std::abs(last.data<float>()[b * 37 + v] -
                                                                   full.data<float>()[(b * 80 + end - 1) * 37 + v])));
          sizes.insert(generation.cache_bytes());
          t = end;
        }
        INFO(kAttentionKindNames[static_cast<std::size_t>(kind.type)] << " prompt " << prompt);
        CHECK(worst < 1e-4);
        CHECK(sizes.size() == 1);
      }
    }
  }
}

TEST_CASE("recurrent layers: a packed document has the logits of the document alone", "[nn]") {
  for (const AttentionKindConfig& kind : kKinds) {
    ModelConfig config = small(Arch::llama, kind);
    // The softmax takes the positions of the row: the same up to rounding, which a choice could feel.
    if (kind.type != AttentionKind::linear) config.rope.partial = 0;
    const Decoder model(config, {.compute = DType::f64, .seed = 5});
    open_gates(model);
    const Tensor tokens = random_tokens(1, 40, 37, 1);
    Tensor starts = zeros({1, 40}, DType::i32);
    for (std::int64_t t = 13; t < 40; ++t) starts.data<std::int32_t>()[t] = 13;
    const Tensor packed = model.logits(tokens, starts), alone = model.logits(tokens.slice(1, 13, 40).contiguous());
    double worst = 0;
    for (std::int64_t x = 0; x < alone.numel(); ++x)
      worst = std::max(worst, std::abs(packed.data<double>()[13 * 37 + x] - alone.data<double>()[x]));
    INFO(kAttentionKindNames[static_cast<std::size_t>(kind.type)]);
    CHECK(worst < 1e-12);
  }
}

TEST_CASE("linear attention in a llama model tells earlier tokens apart by their positions", "[nn]") {
  for (const double partial : {1.0, 0.7, 0.0}) {  // of 6 features a head
    ModelConfig config = small(Arch::llama, kind_of(AttentionKind::linear));
    config.n_layers = 1;  // a second layer would see what the first one made of prefixes
    config.rope.partial = partial, config.init.std = 0.2;
    const Decoder model(config, {.compute = DType::f64, .seed = 5});
    const NoGrad no_grad;
    Tensor tokens = random_tokens(1, 30, 37, 1), swapped = tokens.clone();
    std::int32_t* ids = swapped.data<std::int32_t>();
    ids[3] = (ids[7] + 1) % 37;
    tokens.data<std::int32_t>()[3] = ids[3];
    std::swap(ids[3], ids[7]);
    const auto last = [&](const Tensor& of) { return model.logits(of).slice(1, 29, 30).contiguous(); };
    const double moved = max_difference(last(swapped), last(tokens));
    INFO("rope.partial " << partial);
    if (partial > 0) CHECK(moved > 1e-3);
    else CHECK(moved < 1e-12);  // a sum does not know its order
  }
}

TEST_CASE("linear attention with positions: recompute changes no bit of the gradients", "[nn]") {
  Tensor starts = zeros({2, 40}, DType::i32);
  for (std::int64_t t = 13; t < 40; ++t) starts.data<std::int32_t>()[t] = 13;
  const TokenBatch batch{random_tokens(2, 40, 37, 1), random_tokens(2, 40, 37, 2), starts};
  std::vector<Tensor> gradients[2];
  for (const bool again : {false, true}) {
    const Decoder model(small(Arch::llama, kind_of(AttentionKind::linear)),
                        {.compute = DType::f32, .seed = 3, .recompute = {.attention = again}});
    backward(model.loss_sum(batch));
    for (const ParameterPtr& p : model.parameters()) gradients[again].push_back(p->value.grad());
  }
  for (std::size_t i = 0; i < gradients[0].size(); ++i) CHECK(same_bits(gradients[1][i], gradients[0][i]));
}

TEST_CASE("recurrent layers: parameters are counted", "[nn]") {
  for (const AttentionKindConfig& kind : kKinds) {
    for (const Arch arch : {Arch::gpt2, Arch::llama}) {
      const ModelConfig config = small(arch, kind);
      const Decoder model(config, {.compute = DType::f32, .seed = 5});
      std::int64_t made = 0;
      for (const ParameterPtr& p : model.parameters()) made += p->numel();
      INFO(kAttentionKindNames[static_cast<std::size_t>(kind.type)]);
      CHECK(model_cost(config, 1, 80, DType::f32, {}).parameters == made);
    }
  }
}
