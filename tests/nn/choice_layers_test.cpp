// Layers whose queries choose by content, in whole models: gradients, generation, and what the indexer learns.
#include <cmath>
#include <map>

#include "attention/rotate.h"
#include "attention/shared_qk.h"
#include "core/parallel_for.h"
#include "nn/generation.h"
#include "nn/indexer_layer.h"
#include "small_models.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/draw.h"

using namespace sieve;
using namespace sieve::test;

namespace {

AttentionKindConfig kind_of(AttentionKind type, std::int64_t k = 5) {
  AttentionKindConfig kind;
  kind.type = type;
  PatternSpec& p = kind.pattern;
  if (type == AttentionKind::hash) p.buckets = 4;
  if (type == AttentionKind::top_k || type == AttentionKind::dsa) kind.k = k;
  if (type == AttentionKind::moba) p.block = 3, p.blocks = 2;
  if (type == AttentionKind::dsa) p.index_heads = 3, p.index_dim = 5;
  return kind;
}

ModelConfig model_of(Arch arch, const AttentionKindConfig& kind, std::int64_t T = 24) {
  ModelConfig c = two_layers(arch, kind, T);
  c.init.std = 0.2;  // logits that differ
  c.check(T, [](const std::string& path, const std::string& problem) { FAIL(path << ": " << problem); });
  return c;
}

// Tiny models: waking threads would cost more than the work.
class OneThread {
 public:
  OneThread() : before_(num_threads()) { set_num_threads(1); }
  ~OneThread() { set_num_threads(before_); }

 private:
  int before_;
};

bool of_indexer(const ParameterPtr& p) { return p->name.find(".index.") != std::string::npos; }

constexpr AttentionKind kKinds[] = {AttentionKind::hash, AttentionKind::top_k, AttentionKind::moba, AttentionKind::dsa};

}  // namespace

TEST_CASE("layers that choose by content: gradients agree with finite differences in fp64", "[nn]") {
  const OneThread one_thread;
  for (const AttentionKind type : kKinds) {
    for (const Arch arch : {Arch::gpt2, Arch::llama}) {
      const Decoder model(model_of(arch, kind_of(type)), {.compute = DType::f64, .seed = 5});
      const TokenBatch batch{random_tokens(2, 24, 37, 1), random_tokens(2, 24, 37, 2), {}};
      INFO(kAttentionKindNames[static_cast<std::size_t>(type)]);
      check_model_gradients(model, batch, 1e-6, 1e-5, of_indexer);  // the indexer learns from a loss of its own
    }
  }
}

TEST_CASE("layers that choose by content: generation equals the full forward", "[nn]") {
  const OneThread one_thread;
  for (const AttentionKind type : kKinds) {
    for (const Arch arch : {Arch::gpt2, Arch::llama}) {
      for (const std::int64_t prompt : {1, 9}) {
        const std::int64_t T = 70;
        const Decoder model(model_of(arch, kind_of(type), T), {.compute = DType::f64, .seed = 9});
        const Tensor tokens = random_tokens(2, T, 37, 4);
        const NoGrad no_grad;
        const Tensor full = model.logits(tokens);
        Generation generation(model, 2, T);
        double worst = 0;
        for (std::int64_t t = 0; t < T;) {
          const std::int64_t n = t == 0 ? prompt : t == 30 ? 3 : 1;  // three at once on the way, too
          const Tensor last = generation.append(tokens.slice(1, t, t + n).contiguous());
          t += n;
          worst = std::max(worst, max_difference(last, full.slice(1, t - 1, t).contiguous().reshape(last.shape())));
        }
        INFO(kAttentionKindNames[static_cast<std::size_t>(type)] << " prompt " << prompt);
        CHECK(worst <= 1e-9);
        CHECK(generation.cache_rows() >= 2 * 2 * 2 * T);
      }
    }
  }
}

TEST_CASE("layers that choose by content: generation in bf16 stays near the full forward", "[nn]") {
  const OneThread one_thread;
  for (const AttentionKind type : kKinds) {
    const Decoder model(model_of(Arch::llama, kind_of(type), 40), {.compute = DType::bf16, .seed = 9});
    const Tensor tokens = random_tokens(1, 40, 37, 4);
    const NoGrad no_grad;
    const Tensor full = model.logits(tokens);
    Generation generation(model, 1, 40);
    double sum = 0;
    for (std::int64_t t = 0; t < 40; ++t) {
      const Tensor last = generation.append(tokens.slice(1, t, t + 1).contiguous());
      const auto got = values_of(last), wanted = values_of(full.slice(1, t, t + 1));
      for (std::size_t v = 0; v < got.size(); ++v) sum += std::abs(got[v] - wanted[v]) / (40.0 * 37.0);
    }
    INFO(kAttentionKindNames[static_cast<std::size_t>(type)]);
    // Hidden states differ by bf16's rounding: a near tie may be decided otherwise, but most are not.
    CHECK(sum <= 0.05 * max_abs(full));
  }
}

TEST_CASE("layers that choose by content: recompute and threads change no bit", "[nn]") {
  const int before = num_threads();
  for (const AttentionKind type : kKinds) {
    const TokenBatch batch{random_tokens(2, 24, 37, 1), random_tokens(2, 24, 37, 2), {}};
    const auto gradients = [&](const RecomputeConfig& again, int threads) {
      set_num_threads(threads);
      const Decoder model(model_of(Arch::llama, kind_of(type)), {.compute = DType::f32, .seed = 5, .recompute = again});
      backward(model.loss_sum(batch));
      std::vector<float> all;
      for (const ParameterPtr& p : model.parameters()) {
        REQUIRE(p->value.grad().defined());
        const auto g = p->value.grad().span<float>();
        all.insert(all.end(), g.begin(), g.end());
      }
      return all;
    };
    INFO(kAttentionKindNames[static_cast<std::size_t>(type)]);
    const auto plain = gradients({}, 1);
    CHECK(gradients({.attention = true}, 1) == plain);
    CHECK(gradients({.layers = {0, 1}}, 1) == plain);
    CHECK(gradients({}, 4) == plain);
  }
  set_num_threads(before);
}

TEST_CASE("layers that choose by content: a packed document has the logits of the same document alone", "[nn]") {
  for (const AttentionKind type : kKinds) {
    ModelConfig config = model_of(Arch::llama, kind_of(type), 60);
    config.rope.partial = 0;  // positions are those of the row
    const Decoder model(config, {.compute = DType::f64, .seed = 3});
    const Tensor tokens = random_tokens(1, 60, 37, 8), starts = zeros({1, 60}, DType::i32);
    for (std::int64_t t = 23; t < 60; ++t) starts.data<std::int32_t>()[t] = 23;
    const Tensor packed = model.logits(tokens, starts), alone = model.logits(tokens.slice(1, 23, 60).contiguous());
    INFO(kAttentionKindNames[static_cast<std::size_t>(type)]);
    CHECK(max_difference(packed.slice(1, 23, 60), alone) <= 1e-10);
  }
}

TEST_CASE("hash layers have one projection less and a first token sees nothing", "[nn]") {
  const Decoder model(model_of(Arch::llama, kind_of(AttentionKind::hash)), {.compute = DType::f64, .seed = 3});
  std::map<std::string, ParameterPtr> by_name;
  for (const ParameterPtr& p : model.parameters()) by_name[p->name] = p;
  CHECK(by_name.at("layers.0.attn.qv.weight")->master.shape() == Shape{(4 + 2) * 6, 24});
  CHECK(by_name.count("layers.0.attn.qkv.weight") == 0);
  Draw d(1, 1);
  const NoGrad no_grad;
  const Variable x(d.normal({1, 1, 24})), nothing(zeros({1, 1, 24}, DType::f64));
  CHECK(max_abs(model.blocks()[0].mixer()(x, nothing, {}, nullptr).value()) == 0);

  const Tensor qkv = shared_qk(Variable(d.normal({2, 3, (4 + 2) * 6})), 4, 2, 6).value();
  double off = 0;
  for (std::int64_t x0 = 0; x0 < 2 * 3 * 4; ++x0) {
    const double* q = qkv.data<double>() + x0 / 4 * 72 + x0 % 4 * 6;
    double length = 0, one = 0, along = 0;
    for (int c = 0; c < 6; ++c) length += q[c] * q[c], one += q[24 + c] * q[24 + c], along += q[c] * q[24 + c];
    off = std::max({off, std::abs(one - 1), std::abs(along - std::sqrt(length))});
  }
  CHECK(off < 1e-12);
}

namespace {

struct Indexed {  // one layer, its parameters by the end of their names
  std::map<std::string, ParameterPtr> by_name;
  std::unique_ptr<const Mixer> layer;
  AttentionInputs how;

  Indexed(const ModelConfig& config, DType dtype) {
    ParameterFactory make(dtype, 11);
    layer = make_mixer(make, "x", config, 0);
    for (const ParameterPtr& p : make.all()) by_name[p->name] = p;
    how = {.spec = config.attention_spec(0), .rope = config.rope_spec(), .document_starts = {}};
  }
  Variable value(const std::string& name) const { return by_name.at("x." + name)->value; }

  // The indexer's loss by the equations of docs/attention.md.
  Variable loss(const Tensor& input) const {
    const Variable x(input);
    const std::int64_t Hi = how.spec.pattern.index_heads, Di = how.spec.pattern.index_dim;
    const RopeSpec rope{.rotary_dims = std::min(how.rope.rotary_dims, Di / 2 * 2), .theta = how.rope.theta};
    const Variable k =
        layer_norm(linear(x, value("index.k.weight"), {}), value("index.norm.weight"), value("index.norm.bias"), 1e-5);
    const IndexInputs in{rotate_heads(linear(x, value("index.q.weight"), {}), Hi, rope), rotate_heads(k, 1, rope),
                         scale(score(x, value("index.weights")), 1 / std::sqrt(static_cast<double>(Hi * Di)))};
    const Tensor choice = index_choice(in, how.spec.pattern.k);
    const NoGrad no_grad;
    return index_loss(in, choice, linear(x, value("qkv.weight"), {}).value(), how);
  }
};

}  // namespace

TEST_CASE("the indexer learns from its own loss with weight 1 and the trunk does not learn from it", "[nn]") {
  const OneThread one_thread;
  const ModelConfig config = model_of(Arch::llama, kind_of(AttentionKind::dsa), 40);
  Draw d(2, 2);
  const Tensor input = d.normal({2, 40, 24}), nothing = zeros({2, 40, 24}, DType::f64);
  std::map<std::string, Tensor> first;
  for (const double arriving : {0.0, -3.0}) {
    const Indexed one(config, DType::f64);
    const Variable x = Variable::leaf(input);
    backward((*one.layer)(x, Variable(nothing), {}, nullptr), full({2, 40, 24}, arriving, DType::f64));
    if (arriving == 0) CHECK(max_abs(x.grad()) == 0);
    else CHECK(max_abs(x.grad()) > 0.1);
    for (const auto& [name, p] : one.by_name) {
      INFO(name << " " << arriving);
      const Tensor grad = p->value.grad();
      if (!of_indexer(p)) {
        CHECK((max_abs(grad) == 0) == (arriving == 0));
        continue;
      }
      CHECK(max_abs(grad) > 1e-4);
      if (arriving == 0) first[name] = grad;
      else CHECK(same_bits(grad, first.at(name)));
      double* w = p->master.data<double>() + p->numel() / 2;
      const double before = *w, h = 1e-6;
      *w = before + h;
      const double up = one.loss(input).value().item();
      *w = before - h;
      const double down = one.loss(input).value().item();
      *w = before;
      const double g = grad.contiguous().data<double>()[p->numel() / 2];
      CHECK(std::abs((up - down) / (2 * h) - g) <= 1e-5 * std::max(1.0, std::abs(g)));
    }
  }
}

TEST_CASE("the indexer comes to choose what attention looks at", "[nn]") {
  const OneThread one_thread;
  const ModelConfig config = model_of(Arch::llama, kind_of(AttentionKind::dsa, 12), 64);
  const Indexed one(config, DType::f32);
  Draw d(3, 3);
  const Tensor input = d.normal({1, 64, 24}).to(DType::f32), nothing = zeros({1, 64, 24}, DType::f32);
  const double before = one.loss(input).value().item();
  for (int step = 0; step < 80; ++step) {
    backward((*one.layer)(Variable(input), Variable(nothing), {}, nullptr), nothing);
    for (const auto& [name, p] : one.by_name) {
      if (!of_indexer(p)) continue;
      for (std::int64_t x = 0; x < p->numel(); ++x)
        p->master.data<float>()[x] -= 0.006f * p->value.grad().contiguous().data<float>()[x];
      p->value.zero_grad();
    }
  }
  const double after = one.loss(input).value().item();
  CAPTURE(before, after);
  CHECK(after < 0.7 * before);
}

TEST_CASE("with k at least T dsa is full attention", "[nn]") {
  const Decoder sparse(model_of(Arch::llama, kind_of(AttentionKind::dsa, 24)), {.compute = DType::f64, .seed = 3});
  const Decoder dense(model_of(Arch::llama, kind_of(AttentionKind::full)), {.compute = DType::f64, .seed = 3});
  const Tensor tokens = random_tokens(2, 24, 37, 4);
  CHECK(max_difference(sparse.logits(tokens), dense.logits(tokens)) <= 1e-12);
}
