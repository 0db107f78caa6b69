// Does the scorer learn? Selective copy: 16 marked tokens, each with a slot and a symbol, stand at random places of a
// row of noise; at the end, query m asks for the symbol of slot m. A window of 16 cannot see them; a scorer that learns
// what is marked keeps exactly these 16.
//   selective_copy [--steps N] [--seq-len T] [--kind NAME]      prints accuracy over fresh rows every 100 steps
// Letters: B rows, T tokens, M marked tokens.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>

#include "core/rng.h"
#include "nn/decoder.h"
#include "train/adamw.h"

namespace {

using namespace sieve;

constexpr std::int64_t kMarked = 16, kSymbols = 16, kRows = 16;
// Ids: noise 0..15, marked token of slot m and symbol v at kFirstMarked + 16 m + v, query for slot m at kFirstQuery +
// m.
constexpr std::int64_t kFirstMarked = kSymbols, kFirstQuery = kFirstMarked + kMarked * kSymbols,
                       kVocab = kFirstQuery + kMarked;

// Rows first_row .. first_row + 15 of the endless data set. One marked token in each of 16 equal segments, slots in
// random order.
TokenBatch make_batch(std::int64_t T, std::uint64_t first_row, bool queries_only) {
  TokenBatch batch{empty({kRows, T}, DType::i32), full({kRows, T}, -1, DType::i32), {}};
  const std::int64_t segment = (T - kMarked) / kMarked;
  for (std::int64_t b = 0; b < kRows; ++b) {
    const Philox random{42, stream_of(first_row + static_cast<std::uint64_t>(b))};
    const auto pick = [&](std::int64_t i, std::int64_t n) {
      return static_cast<std::int32_t>(random.bits64(static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(n));
    };
    std::int32_t* tokens = batch.tokens.data<std::int32_t>() + b * T;
    std::int32_t* targets = batch.targets.data<std::int32_t>() + b * T;
    for (std::int64_t t = 0; t < T - kMarked; ++t) tokens[t] = pick(t, kSymbols);
    std::array<std::int32_t, kMarked> slots;
    std::iota(slots.begin(), slots.end(), 0);
    for (std::int64_t m = 0; m < kMarked; ++m) {
      std::swap(slots[static_cast<std::size_t>(m)], slots[static_cast<std::size_t>(m + pick(3 * T + m, kMarked - m))]);
      const std::int32_t slot = slots[static_cast<std::size_t>(m)], symbol = pick(2 * T + m, kSymbols);
      const std::int64_t at = m * segment + pick(T + m, segment);
      tokens[at] = static_cast<std::int32_t>(kFirstMarked + slot * kSymbols + symbol);
      if (!queries_only)
        targets[at] = symbol;  // a marked token says its own symbol: the way from symbol to output is learned at once
      tokens[T - kMarked + slot] = static_cast<std::int32_t>(kFirstQuery + slot);
      targets[T - kMarked + slot] = symbol;
    }
  }
  return batch;
}

double accuracy(const Decoder& model, std::int64_t T) {
  const NoGrad no_grad;
  std::int64_t right = 0, all = 0;
  for (std::uint64_t n = 0; n < 8; ++n) {
    const TokenBatch batch = make_batch(T, (1ull << 40) + n * kRows, true);
    const Tensor logits = model.logits(batch.tokens);
    for (std::int64_t row = 0; row < kRows * T; ++row) {
      const std::int32_t target = batch.targets.data<std::int32_t>()[row];
      if (target < 0) continue;
      const float* l = logits.data<float>() + row * kVocab;
      right += std::max_element(l, l + kVocab) - l == target;
      ++all;
    }
  }
  return static_cast<double>(right) / static_cast<double>(all);
}

double train(const std::string& kind, std::int64_t T, std::int64_t steps, double lr) {
  ModelConfig config;
  config.arch = Arch::gpt2;
  config.n_layers = 2, config.d_model = 64, config.n_heads = 4, config.n_kv_heads = 1;
  AttentionKindConfig recipe;
  recipe.type = kind == "full"     ? AttentionKind::full
                : kind == "window" ? AttentionKind::sliding_window
                                   : AttentionKind::sparsek;
  if (kind != "full") recipe.window = 16;
  if (recipe.type == AttentionKind::sparsek) recipe.k = kMarked;
  config.attention.kinds[kind] = recipe;
  config.attention.pattern = {kind};
  config.resolve(kVocab, T);
  const Decoder model(config, {.compute = DType::f32, .seed = 1});
  std::vector<ParameterPtr> trained;
  for (const ParameterPtr& p : model.parameters()) {
    if (kind == "frozen" && p->scorer) freeze(*p);
    if (p->trainable) trained.push_back(p);
  }
  OptimizerConfig adam;
  adam.weight_decay = 0.01;
  AdamW optimizer(adam, trained);
  for (std::int64_t step = 0; step < steps; ++step) {
    const TokenBatch batch = make_batch(T, static_cast<std::uint64_t>(step * kRows), false);
    const Variable loss = scale(model.loss_sum(batch), 1.0 / (2 * kRows * kMarked));
    backward(loss);
    std::vector<Tensor> grads;
    for (const ParameterPtr& p : trained) grads.push_back(p->value.grad());
    const double warm = std::min(1.0, static_cast<double>(step + 1) / 100);
    optimizer.step(grads, lr * warm, clip_factor(gradient_norm(grads), 1.0));
    for (const ParameterPtr& p : trained) p->value.zero_grad();
    if ((step + 1) % 100 == 0) {
      std::printf("%-8s step %5lld loss %.4f accuracy %.1f %%\n", kind.c_str(), static_cast<long long>(step + 1),
                  loss.value().item(), 100 * accuracy(model, T));
      std::fflush(stdout);
    }
  }
  return accuracy(model, T);
}

}  // namespace

int main(int argc, char** argv) {
  std::int64_t steps = 1500, T = 512;
  std::string only;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--steps")) steps = std::atoll(argv[i + 1]);
    if (!std::strcmp(argv[i], "--seq-len")) T = std::atoll(argv[i + 1]);
    if (!std::strcmp(argv[i], "--kind")) only = argv[i + 1];
  }
  std::string table = "\n| attention | accuracy (chance 6.2 %) |\n|---|---|\n";
  for (const char* kind : {"sparsek", "frozen", "window", "full"}) {
    if (!only.empty() && only != kind) continue;
    char line[64];
    std::snprintf(line, sizeof line, "| %s | %.1f %% |\n", kind, 100 * train(kind, T, steps, 3e-3));
    table += line;
  }
  std::printf("%s", table.c_str());
}
