// Native sparse attention as a layer: against its definition, in whole models, and token by token.
#include "nn/nsa_layer.h"

#include <cmath>
#include <map>

#include "attention/attention_cost.h"
#include "attention/dense_oracle.h"
#include "attention/nsa_oracle.h"
#include "core/parallel_for.h"
#include "nn/generation.h"
#include "nn/model_cost.h"
#include "small_models.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/draw.h"

using namespace sieve;
using namespace sieve::test;

namespace {

using Values = std::vector<double>;

ModelConfig nsa_model(Arch arch, std::int64_t T, std::int64_t stride = 2) {
  AttentionKindConfig kind;
  kind.type = AttentionKind::nsa;
  kind.window = 5;
  kind.pattern.compress_stride = stride, kind.pattern.compress_block = 2 * stride;
  kind.pattern.block = 2 * stride, kind.pattern.blocks = 5;
  ModelConfig c;
  c.arch = arch;
  c.n_layers = 2, c.d_model = 24, c.n_heads = 4, c.n_kv_heads = 2, c.d_ff = 32;
  c.attention.kinds["a"] = kind;
  c.attention.pattern = {"a"};
  c.init.std = 0.2;  // logits that differ
  c.resolve(37, T);
  c.check(T, [](const std::string& path, const std::string& problem) { FAIL(path << ": " << problem); });
  return c;
}

// x (rows, in) times a weight (out, in), plus its bias if there is one.
Values product(const Values& x, const std::map<std::string, ParameterPtr>& p, const std::string& name) {
  const Values w = values_of(p.at(name + ".weight")->master);
  const auto out = static_cast<std::size_t>(p.at(name + ".weight")->master.size(0)), in = w.size() / out;
  const Values bias = p.count(name + ".bias") ? values_of(p.at(name + ".bias")->master) : Values(out, 0.0);
  Values y;
  for (std::size_t row = 0; row < x.size() / in; ++row) {
    for (std::size_t o = 0; o < out; ++o) {
      y.push_back(bias[o]);
      for (std::size_t i = 0; i < in; ++i) y.back() += w[o * in + i] * x[row * in + i];
    }
  }
  return y;
}

double gelu_of(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

// docs/attention.md, word for word.
class LayerOracle {
 public:
  LayerOracle(const std::vector<ParameterPtr>& parameters, const AttentionSpec& spec, const RopeSpec& rope,
              std::int64_t B, std::int64_t T, std::vector<std::int32_t> starts)
      : spec_(spec), rope_(rope), B_(B), T_(T), starts_(std::move(starts)) {
    for (const ParameterPtr& p : parameters) by_name_[p->name] = p;
    for (std::int64_t m = 0; m * spec.pattern.compress_stride + spec.pattern.compress_block <= T; ++m) ++M_;
  }

  Values run(const Values& x) {
    const Values q = product(x, by_name_, "a.q"), gates = product(x, by_name_, "a.gates");
    CompressedCase in{.B = B_, .T = T_, .spec = spec_, .starts = starts_, .q = q, .k = {}, .v = {}};
    in.k = compressed(in, x, "a.keys"), in.v = compressed(in, x, "a.values");
    const CompressedResult first = CompressedOracle(in, M_).run({});
    for (const double m : first.margin) margin = std::min(margin, m);
    const std::int64_t G = spec_.group(), Hkv = spec_.n_kv_heads;
    const auto same_document = [&](std::int64_t b, std::int64_t i, std::int64_t j) { return in.start(b, i) <= j; };
    const Values second =
        dense(q, x, "a.selected", [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
          const auto& blocks = first.choice[static_cast<std::size_t>((b * Hkv + h / G) * T_ + i)];
          return same_document(b, i, j) && blocks.count((j - in.start(b, i)) / spec_.pattern.block) > 0;
        });
    const Values third = dense(q, x, "a.window", [&](std::int64_t b, std::int64_t, std::int64_t i, std::int64_t j) {
      return same_document(b, i, j) && i - j < spec_.window;
    });
    Values joined(q.size());
    for (std::size_t e = 0; e < joined.size(); ++e) {
      const auto HD = static_cast<std::size_t>(spec_.n_heads * spec_.head_dim),
                 H = static_cast<std::size_t>(spec_.n_heads);
      const std::size_t gate = e / HD * 3 * H + e % HD / static_cast<std::size_t>(spec_.head_dim);
      const auto open = [&](std::size_t branch) { return 1 / (1 + std::exp(-gates[gate + branch * H])); };
      joined[e] = open(0) * first.out[e] + open(1) * second[e] + open(2) * third[e];
    }
    return product(joined, by_name_, "a.out");
  }

  double margin = 1;

 private:
  // (B, Hkv, M, D)
  Values compressed(const CompressedCase& in, const Values& x, const std::string& name) const {
    const std::int64_t l = spec_.pattern.compress_block, s = spec_.pattern.compress_stride, D = spec_.head_dim,
                       Hkv = spec_.n_kv_heads;
    const Values rows = product(x, by_name_, name + ".project"),
                 places = values_of(by_name_.at(name + ".compress.places")->master);
    Values out(static_cast<std::size_t>(B_ * Hkv * M_ * D), 0.0);
    for (std::int64_t b = 0; b < B_; ++b) {
      for (std::int64_t first = 0, m = 0; first + l <= T_; ++first) {
        const std::int64_t start = in.start(b, first);
        if ((first - start) % s != 0 || in.start(b, first + l - 1) != start) continue;
        for (std::int64_t h = 0; h < Hkv; ++h) {
          Values block;
          for (std::int64_t y = 0; y < l * D; ++y)
            block.push_back(rows[static_cast<std::size_t>(((b * T_ + first + y / D) * Hkv + h) * D + y % D)] +
                            places[static_cast<std::size_t>(y)]);
          Values hidden = product(block, by_name_, name + ".compress.up");
          for (double& value : hidden) value = gelu_of(value);
          const Values one = product(hidden, by_name_, name + ".compress.down");
          std::copy(one.begin(), one.end(), out.begin() + ((b * Hkv + h) * M_ + m) * D);
        }
        ++m;
      }
    }
    return out;
  }

  Values dense(const Values& q, const Values& x, const std::string& name, const Visible& sees) const {
    const Values kv = product(x, by_name_, name);
    ReferenceInput in;
    in.B = B_, in.T = T_, in.spec = spec_, in.rope = rope_;
    const auto qs = static_cast<std::ptrdiff_t>(q.size()) / (B_ * T_),
               kvs = static_cast<std::ptrdiff_t>(kv.size()) / (B_ * T_);
    for (std::int64_t row = 0; row < B_ * T_; ++row) {
      in.qkv.insert(in.qkv.end(), q.begin() + row * qs, q.begin() + (row + 1) * qs);
      in.qkv.insert(in.qkv.end(), kv.begin() + row * kvs, kv.begin() + (row + 1) * kvs);
    }
    return DenseOracle(in, sees).run({}).out;
  }

  AttentionSpec spec_;
  RopeSpec rope_;
  std::int64_t B_, T_, M_ = 0;
  std::vector<std::int32_t> starts_;
  std::map<std::string, ParameterPtr> by_name_;
};

}  // namespace

TEST_CASE("an nsa layer follows its definition: documents and short rows and both architectures", "[nn]") {
  int compared = 0;
  for (std::uint64_t c = 0; c < 24; ++c) {
    Draw d(17, c);
    const std::int64_t B = d.integer(1, 2), T = c % 6 == 0 ? d.integer(1, 4) : d.integer(20, 90);
    const Arch arch = c % 2 == 0 ? Arch::llama : Arch::gpt2;
    const ModelConfig config = nsa_model(arch, 90, d.integer(1, 3));
    std::vector<std::int32_t> starts;
    if (c % 3 == 1) {
      for (std::int64_t t = 0; t < B * T; ++t)
        starts.push_back(t % T == 0 ? 0 : d.chance(0.05) ? static_cast<std::int32_t>(t % T) : starts.back());
    }
    const Tensor x = d.normal({B, T, 24}), residual = d.normal({B, T, 24}),
                 documents = starts.empty() ? Tensor() : from_values<std::int32_t>(std::span(starts), {B, T});
    CAPTURE(c, B, T, starts.size());
    for (const DType dtype : {DType::f64, DType::f32}) {
      ParameterFactory make(dtype, 5);
      const NsaLayer layer(make, "a", config, 0);
      for (const ParameterPtr& p : make.all()) {  // biases start at 0
        if (p->master.rank() == 1) p->master.copy_from(d.normal(p->master.shape()));
        refresh_value(*p);
      }
      LayerOracle oracle(make.all(), config.attention_spec(0), config.rope_spec(), B, T, starts);
      const Tensor rounded_x = x.to(dtype), rounded_residual = residual.to(dtype);
      Values wanted = oracle.run(values_of(rounded_x));
      const Values add = values_of(rounded_residual);
      for (std::size_t e = 0; e < wanted.size(); ++e) wanted[e] += add[e];
      if (dtype == DType::f32 && oracle.margin != 0 && oracle.margin < 1e-5) continue;  // decided by a rounding
      const Tensor out = layer(Variable(rounded_x), Variable(rounded_residual), {documents, {}}, nullptr).value();
      CHECK(relative_difference(out, from_values<double>(std::span(wanted), out.shape())) <=
            (dtype == DType::f64 ? 1e-11 : 1e-5));
      ++compared;
    }
  }
  CHECK(compared >= 40);
}

TEST_CASE("nsa: gradients agree with finite differences in fp64", "[nn]") {
  for (const Arch arch : {Arch::gpt2, Arch::llama}) {
    const Decoder model(nsa_model(arch, 40), {.compute = DType::f64, .seed = 5});
    for (const std::int64_t T : {40, 3}) {  // 3: less than a compressed key stands for
      const TokenBatch batch{random_tokens(2, T, 37, 1), random_tokens(2, T, 37, 2), {}};
      INFO("T " << T);
      check_model_gradients(model, batch, 1e-6, 1e-5);
    }
  }
}

TEST_CASE("nsa: generation equals the full forward", "[nn]") {
  for (const Arch arch : {Arch::gpt2, Arch::llama}) {
    for (const std::int64_t prompt : {1, 2, 9, 40}) {
      const std::int64_t T = 90;
      const Decoder model(nsa_model(arch, T), {.compute = DType::f64, .seed = 9});
      const Tensor tokens = random_tokens(2, T, 37, 4);
      const NoGrad no_grad;
      const Tensor full = model.logits(tokens);
      Generation generation(model, 2, T);
      double worst = 0;
      for (std::int64_t t = 0; t < T;) {
        const std::int64_t n = t == 0 ? prompt : t >= 50 && t < 60 ? 5 : 1;  // some at once on the way
        const Tensor last = generation.append(tokens.slice(1, t, t + n).contiguous());
        t += n;
        worst = std::max(worst, max_difference(last, full.slice(1, t - 1, t).contiguous().reshape(last.shape())));
      }
      CAPTURE(arch == Arch::gpt2, prompt);
      CHECK(worst <= 1e-9);
      CHECK(generation.cache_rows() == 2 * 2 * 2 * cached_rows(model.config().attention_spec(0), T));
    }
  }
}

TEST_CASE("nsa: recompute and threads change no bit", "[nn]") {
  const int before = num_threads();
  const TokenBatch batch{random_tokens(2, 150, 37, 1), random_tokens(2, 150, 37, 2), {}};
  const auto gradients = [&](const RecomputeConfig& again, int threads) {
    set_num_threads(threads);
    const Decoder model(nsa_model(Arch::llama, 150), {.compute = DType::f32, .seed = 5, .recompute = again});
    backward(model.loss_sum(batch));
    std::vector<float> all;
    for (const ParameterPtr& p : model.parameters()) {
      const auto g = p->value.grad().span<float>();
      all.insert(all.end(), g.begin(), g.end());
    }
    return all;
  };
  const auto plain = gradients({}, 1);
  CHECK(gradients({.attention = true}, 1) == plain);
  CHECK(gradients({}, 3) == plain);
  set_num_threads(before);
}

TEST_CASE("nsa: a packed document has the logits of the same document alone", "[nn]") {
  ModelConfig config = nsa_model(Arch::llama, 60);
  config.rope.partial = 0;  // positions are those of the row
  const Decoder model(config, {.compute = DType::f64, .seed = 3});
  const Tensor tokens = random_tokens(1, 60, 37, 8), starts = zeros({1, 60}, DType::i32);
  for (std::int64_t t = 23; t < 60; ++t) starts.data<std::int32_t>()[t] = 23;
  const Tensor packed = model.logits(tokens, starts), alone = model.logits(tokens.slice(1, 23, 60).contiguous());
  CHECK(max_difference(packed.slice(1, 23, 60), alone) <= 1e-10);
}

TEST_CASE("nsa: in bf16 a model stays near the same in fp32", "[nn]") {
  const auto loss = [](DType dtype) {
    const Decoder model(nsa_model(Arch::llama, 64), {.compute = dtype, .seed = 5});
    return loss_of(model, {random_tokens(2, 64, 37, 1), random_tokens(2, 64, 37, 2), {}}) / 128;
  };
  CHECK(std::abs(loss(DType::bf16) - loss(DType::f32)) < 0.02);
}

TEST_CASE("nsa: a state of any length grows by doubling and one of a known length to just that", "[nn]") {
  const ModelConfig config = nsa_model(Arch::llama, 200);
  const AttentionSpec spec = config.attention_spec(0);
  ParameterFactory make(DType::f32, 5);
  const NsaLayer layer(make, "a", config, 0);
  // Everything whole, the window, one of two positions, and the two positions from which the next begins.
  CHECK(cached_rows(spec, 200) == 200 + 5 + 99 + 2);
  for (const std::int64_t known : {0, 200}) {
    const auto state = layer.start(1, DType::f32, known);
    Draw d(3, 0);
    for (std::int64_t t = 0; t < 200; ++t) {
      const Variable x(d.normal({1, 1, 24}).to(DType::f32));
      layer.extend(x, x, *state);
      CHECK(state->rows() >= cached_rows(spec, t + 1));
    }
    if (known > 0) CHECK(state->rows() == cached_rows(spec, 200));
    else CHECK(state->rows() <= 2 * cached_rows(spec, 200));
  }
}
