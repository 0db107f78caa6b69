// A generation equals the full forward at every position: logits, selected keys, and memory that does not grow.
#include "nn/generation.h"

#include <algorithm>
#include <cmath>

#include "core/rng.h"
#include "support/catch.h"

using namespace sieve;

namespace {

constexpr std::int64_t kVocab = 61, kK = 32, kWindow = 32, kHeads = 2;

Decoder sparse_model(std::int64_t max_seq) {
  ModelConfig c;
  c.n_layers = 2, c.d_model = 32, c.n_heads = 4, c.n_kv_heads = kHeads, c.d_ff = 48;
  AttentionKindConfig kind;
  kind.type = AttentionKind::sparsek;
  kind.k = kK, kind.window = kWindow;
  c.attention.kinds["sk"] = kind;
  c.attention.pattern = {"sk"};
  c.resolve(kVocab, max_seq);
  c.init.std = 0.2;  // far from the uniform distribution, so that wrong keys show in the logits
  return Decoder(c, {.compute = DType::f32, .seed = 11});
}

Tensor random_tokens(std::int64_t T) {
  Tensor t = empty({1, T}, DType::i32);
  const Philox random{3, 1};
  for (std::int64_t i = 0; i < T; ++i)
    t.data<std::int32_t>()[i] = static_cast<std::int32_t>(random.bits64(static_cast<std::uint64_t>(i)) % kVocab);
  return t;
}

}  // namespace

TEST_CASE("generation: 4,096 positions one by one give the logits of the full forward", "[nn]") {
  const std::int64_t T = 4096;
  const Decoder model = sparse_model(T);
  const Tensor tokens = random_tokens(T);
  const Tensor full = model.logits(tokens);
  Generation generation(model, 1, T);
  double worst = 0, largest = 0;
  int compared = 0;
  for (std::int64_t t = 0; t < T; ++t) {
    const Tensor step = generation.append(tokens.slice(1, t, t + 1).contiguous());
    for (std::int64_t v = 0; v < kVocab; ++v) {
      const double exact = full.data<float>()[t * kVocab + v];
      worst = std::max(worst, std::abs(step.data<float>()[v] - exact));
      largest = std::max(largest, std::abs(exact));
    }
    // A prompt of the same length goes through the tiled engine and the selection of whole sequences: the same keys
    // must be left.
    if ((t + 1) % 512 != 0) continue;
    Generation prompt(model, 1, T);
    prompt.append(tokens.slice(1, 0, t + 1).contiguous());
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      for (std::int64_t head = 0; head < kHeads; ++head) {
        INFO("position " << t << ", layer " << layer << ", head " << head);
        CHECK(prompt.selected(layer, 0, head) == generation.selected(layer, 0, head));
        CHECK(static_cast<std::int64_t>(generation.selected(layer, 0, head).size()) == kK);
        ++compared;
      }
    }
  }
  INFO("largest logit " << largest);
  CHECK(worst <= 1e-4);
  CHECK(largest > 0.5);
  CHECK(compared == 8 * 2 * kHeads);
}

TEST_CASE("generation: rows and bytes are the same after 1,024 and 16,384 tokens", "[nn]") {
  const Decoder model = sparse_model(16384);
  const Tensor tokens = random_tokens(16384);
  Generation generation(model, 1, 16384);
  generation.append(tokens.slice(1, 0, 1024).contiguous());
  const std::int64_t rows = generation.cache_rows(), bytes = generation.cache_bytes();
  CHECK(rows == 2 * kHeads * (kK + kWindow));
  for (std::int64_t t = 1024; t < 16384; ++t) generation.append(tokens.slice(1, t, t + 1).contiguous());
  CHECK(generation.length() == 16384);
  CHECK(generation.cache_rows() == rows);
  CHECK(generation.cache_bytes() == bytes);
}

TEST_CASE("generation: a greedy continuation appends what it chose, and sequences may share a prompt", "[nn]") {
  const Decoder model = sparse_model(256);
  const Tensor prompt = random_tokens(80);
  Generation one(model, 1, 256), loop(model, 1, 256), two(model, 2, 256);
  loop.append(prompt);
  CHECK(one.append(prompt).data<float>()[3] == two.append(prompt).data<float>()[kVocab + 3]);
  CHECK(two.length() == 80);
  Tensor next = from_values<std::int32_t>(std::vector<std::int32_t>{7}, {1, 1});
  const Tensor chosen = one.continue_greedily(next, 60, kVocab - 10);
  CHECK(one.length() == 140);
  for (std::int64_t t = 0; t < 60; ++t) {
    const Tensor logits = loop.append(next);
    const float* row = logits.data<float>();
    const auto best = static_cast<std::int32_t>(std::max_element(row, row + kVocab - 10) - row);
    REQUIRE(chosen.data<std::int32_t>()[t] == best);
    next.data<std::int32_t>()[0] = best;
  }
  CHECK_THROWS_AS(two.append(prompt), Error);  // shared at the beginning alone
  CHECK_THROWS_AS(one.continue_greedily(next, 1, kVocab + 1), Error);
  CHECK_FALSE(one.captured());
}

TEST_CASE("generation: logits visited in chunks are those of the whole", "[nn]") {
  const Decoder model = sparse_model(256);
  const Tensor tokens = random_tokens(100), all = model.logits(tokens);
  std::int64_t at = 13;
  model.visit_logits(tokens, 13, 30, [&](std::int64_t first, const Tensor& logits) {
    REQUIRE(first == at);
    for (std::int64_t x = 0; x < logits.numel(); ++x)
      CHECK(std::abs(logits.data<float>()[x] - all.data<float>()[first * kVocab + x]) < 1e-4);
    at += logits.size(1);
  });
  CHECK(at == 100);
}
