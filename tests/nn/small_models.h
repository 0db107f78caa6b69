// What the tests of whole models share: a model of two small layers, its loss, its gradients against differences, and
// what it generates against its full forward.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "nn/generation.h"
#include "random_tokens.h"
#include "support/catch.h"
#include "support/compare.h"

namespace sieve::test {

// Every layer of this kind; 37 tokens, length T.
inline ModelConfig two_layers(Arch arch, const AttentionKindConfig& kind, std::int64_t T) {
  ModelConfig c;
  c.arch = arch;
  c.n_layers = 2, c.d_model = 24, c.n_heads = 4, c.n_kv_heads = 2, c.d_ff = 32;
  c.attention.kinds["a"] = kind;
  c.attention.pattern = {"a"};
  c.resolve(37, T);
  return c;
}

inline double loss_of(const Decoder& model, const TokenBatch& batch) {
  const NoGrad no_grad;
  return model.loss_sum(batch).value().item();
}

// One element of every parameter of an fp64 model against central differences of step h, to `bound` of its size (or of
// 1). `skips`: parameters that learn from something else than the loss.
inline void check_model_gradients(const Decoder& model, const TokenBatch& batch, double h, double bound,
                                  const std::function<bool(const ParameterPtr&)>& skips = {}) {
  for (const ParameterPtr& p : model.parameters()) p->value.zero_grad();
  backward(model.loss_sum(batch));
  for (const ParameterPtr& p : model.parameters()) {
    INFO(p->name);
    REQUIRE(p->value.grad().defined());
    if (skips && skips(p)) continue;
    double* w = p->master.data<double>() + p->numel() / 2;
    const double before = *w;
    *w = before + h;
    const double up = loss_of(model, batch);
    *w = before - h;
    const double down = loss_of(model, batch);
    *w = before;
    const double g = p->value.grad().contiguous().data<double>()[p->numel() / 2];
    CHECK(std::abs((up - down) / (2 * h) - g) <= bound * std::max(1.0, std::abs(g)));
  }
}

// The largest difference between the logits that a generation leaves and those of the full forward, (B, T, V) on the
// CPU: a prompt, then one token at a time.
inline double generation_error(Generation& generation, const Tensor& tokens, const Tensor& full, std::int64_t prompt) {
  double worst = 0;
  for (std::int64_t t = 0; t < tokens.size(1);) {
    const std::int64_t end = t == 0 ? prompt : t + 1;
    const Tensor last = generation.append(tokens.slice(1, t, end).contiguous()).to(Stream{});
    worst = std::max(worst, max_difference(last, full.slice(1, end - 1, end).contiguous().reshape(last.shape())));
    t = end;
  }
  return worst;
}

}  // namespace sieve::test
