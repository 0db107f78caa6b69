// Captured generation on a GPU against the CPU's, token by token: logits, selected keys, rows; and against itself:
// greedy continuation, shared prompts, memory, repeated runs.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "core/rng.h"
#include "nn/generation.h"
#include "random_tokens.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/gpu.h"

using namespace sieve;
using sieve::test::gpu_stream;
using sieve::test::max_abs;
using sieve::test::max_difference;
using sieve::test::random_tokens;

namespace {

constexpr std::int64_t kVocab = 61;

struct Recipe {
  explicit Recipe(const char* n) : name(n) {}
  const char* name;
  Arch arch = Arch::llama;
  AttentionKindConfig kind;
  std::int64_t n_heads = 4, n_kv_heads = 2, head_dim = 16;
  std::int64_t batch = 2, prompt = 7, tokens = 120, d_model = 64, d_ff = 96;
  std::vector<std::string> pattern{"a"};
};

AttentionKindConfig sparse(GateMode gate = GateMode::kv) {
  AttentionKindConfig kind;
  kind.type = AttentionKind::sparsek;
  kind.k = 16, kind.window = 12, kind.gate = gate;
  return kind;
}

std::unique_ptr<Decoder> model_of(const Recipe& r, DType compute, const Stream& stream) {
  ModelConfig c;
  c.arch = r.arch;
  c.n_layers = 2, c.d_model = r.d_model, c.n_heads = r.n_heads, c.n_kv_heads = r.n_kv_heads, c.head_dim = r.head_dim;
  c.d_ff = r.d_ff;
  c.attention.kinds["a"] = r.kind;
  AttentionKindConfig window, full;
  window.type = AttentionKind::sliding_window, window.window = 9, window.sinks = 3;
  c.attention.kinds["w"] = window;
  c.attention.kinds["f"] = full;
  c.attention.pattern = r.pattern;
  c.resolve(kVocab, 256);
  c.init.std = 0.1;
  auto model = std::make_unique<Decoder>(c, DecoderOptions{.compute = compute, .seed = 11, .recompute = {}});
  place_parameters(model->parameters(), stream);
  return model;
}

// Adds a recipe of the defaults to `all`, for the caller to change.
auto adder(std::vector<Recipe>& all) {
  return [&all](const char* name) -> Recipe& {
    all.emplace_back(name);
    all.back().kind = sparse();
    return all.back();
  };
}

// One sequence goes by kernels of its own.
void add_single_sequences(std::vector<Recipe>& all) {
  const auto add = adder(all);
  add("one sequence").batch = 1;
  Recipe& hard_one = add("one sequence, gate hard, no prompt");
  hard_one.batch = 1, hard_one.prompt = 1, hard_one.kind.gate = GateMode::hard;
  Recipe& prob_one = add("one sequence, gate prob, heads of 96, six to a group of three");
  prob_one.batch = 1, prob_one.kind.gate = GateMode::prob;
  prob_one.head_dim = 96, prob_one.n_heads = 6, prob_one.n_kv_heads = 2;
  Recipe& normed_one = add("one sequence, scores normalised, one selection for all heads, gate value");
  normed_one.batch = 1, normed_one.kind.score.norm = ScoreNorm::timestep, normed_one.kind.score.per = ScorePer::layer;
  normed_one.kind.gate = GateMode::value;
  Recipe& full_one = add("one sequence, full and window");
  full_one.batch = 1, full_one.pattern = {"f", "w"};
  Recipe& many_one = add("one sequence, more keys than a split holds at once, gpt2");
  many_one.batch = 1, many_one.arch = Arch::gpt2, many_one.kind.window = 90, many_one.kind.k = 130;
  many_one.n_heads = many_one.n_kv_heads = 40, many_one.head_dim = 128, many_one.prompt = 200, many_one.tokens = 240;
  Recipe large_one = many_one;
  large_one.name = "one sequence, more rows than shared memory has room for";
  large_one.arch = Arch::llama, large_one.kind.k = 600;
  all.push_back(large_one);
  for (const Arch arch : {Arch::llama, Arch::gpt2}) {
    Recipe& wide_one = add("one sequence, several warps to a row of weights");
    wide_one.batch = 1, wide_one.arch = arch, wide_one.d_model = 384, wide_one.d_ff = 1200, wide_one.tokens = 60;
    wide_one.n_heads = 10, wide_one.n_kv_heads = 5, wide_one.head_dim = 64;
  }
}

std::vector<Recipe> recipes() {
  std::vector<Recipe> all;
  const auto add = adder(all);
  add("defaults");
  add("no prompt").prompt = 1;
  add("a prompt longer than the window and k").prompt = 60;
  add("gpt2").arch = Arch::gpt2;
  Recipe& mha = add("gpt2, every query head its own");
  mha.arch = Arch::gpt2, mha.n_kv_heads = 4, mha.batch = 1;
  add("gate value").kind.gate = GateMode::value;
  add("gate prob").kind.gate = GateMode::prob;
  add("gate hard").kind.gate = GateMode::hard;
  add("at once").kind.candidates = Candidates::at_once;
  Recipe& hard = add("at once, hard");
  hard.kind.candidates = Candidates::at_once, hard.kind.gate = GateMode::hard;
  add("distances clamped").kind.positions = PositionRule::clamp;
  Recipe& far = add("distances clamped far");
  far.kind.positions = PositionRule::clamp, far.kind.clamp_distance = 40;
  add("no positions").kind.positions = PositionRule::none;
  add("one selection for all heads").kind.score.per = ScorePer::layer;
  Recipe& normed = add("scores normalised");
  normed.kind.score.norm = ScoreNorm::timestep, normed.kind.score.temperature = 0.5;
  add("a pool of two").kind.pool = 2;
  add("a slope").kind.score.slope = 0.01;
  Recipe& wide = add("heads of 64");
  wide.head_dim = 64, wide.batch = 3;
  Recipe& odd = add("heads of 96, six to a group of three");
  odd.head_dim = 96, odd.n_heads = 6, odd.n_kv_heads = 2;
  Recipe& group = add("eight query heads a group, heads of 128");
  group.head_dim = 128, group.n_heads = 8, group.n_kv_heads = 1, group.batch = 1;
  Recipe& large = add("heads of 256");
  large.head_dim = 256, large.n_heads = 2, large.n_kv_heads = 2, large.batch = 1;
  add("a batch of five").batch = 5;
  add("a batch of eight").batch = 8;
  Recipe& library = add("a batch of twelve, by the library");
  library.batch = 12, library.tokens = 70;
  Recipe& library_gpt2 = add("a batch of nine, gpt2, by the library");
  library_gpt2.arch = Arch::gpt2, library_gpt2.batch = 9, library_gpt2.tokens = 70;
  add("window and sinks").pattern = {"w"};
  add("full").pattern = {"f"};
  Recipe& full_gpt2 = add("full, gpt2");
  full_gpt2.arch = Arch::gpt2, full_gpt2.pattern = {"f"};
  add("sparsek and full").pattern = {"a", "f"};
  Recipe& mixed = add("window and sparsek at once, no prompt");
  mixed.pattern = {"w", "a"}, mixed.kind.candidates = Candidates::at_once, mixed.prompt = 1;
  add_single_sequences(all);
  return all;
}

struct Outcome {
  double worst = 0, largest = 0;
  int different = 0, kept = 0;
  bool captured = false, rows = false;
};

Outcome compare(const Recipe& r) {
  const auto here = model_of(r, DType::f32, Stream{}), there = model_of(r, DType::f32, gpu_stream());
  const Tensor tokens = random_tokens(r.batch, r.tokens, kVocab, 4);
  Generation cpu(*here, r.batch, r.tokens), gpu(*there, r.batch, r.tokens);
  Outcome out;
  for (std::int64_t begin = 0, end; begin < r.tokens; begin = end) {
    end = begin == 0 ? r.prompt : begin + 1;
    const Tensor next = tokens.slice(1, begin, end).contiguous();
    const Tensor wanted = cpu.append(next), got = gpu.append(next).to(Stream{});
    out.worst = std::max(out.worst, max_difference(got, wanted));
    out.largest = std::max(out.largest, max_abs(wanted));
    if ((end - 1) % 7 != 0 && end < r.tokens) continue;
    for (std::int64_t layer = 0; layer < 2; ++layer) {
      for (std::int64_t x = 0; x < r.batch * r.n_kv_heads; ++x) {
        const auto keys = cpu.selected(layer, x / r.n_kv_heads, x % r.n_kv_heads);
        out.different += gpu.selected(layer, x / r.n_kv_heads, x % r.n_kv_heads) != keys;
        out.kept += static_cast<int>(keys.size());
      }
    }
  }
  out.captured = gpu.captured();
  out.rows = gpu.cache_rows() == cpu.cache_rows() && gpu.length() == cpu.length();
  return out;
}

std::int64_t argmax(const float* logits) { return std::max_element(logits, logits + kVocab) - logits; }

}  // namespace

TEST_CASE("GPU: captured generation is the CPU's in logits and selected keys for every kind of model", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const Recipe& r : recipes()) {
    INFO(r.name);
    const Outcome o = compare(r);
    CHECK(o.captured);
    CHECK(o.worst <= 1e-4 * std::max(1.0, o.largest));
    CHECK(o.largest > 0.2);
    CHECK(o.different == 0);
    CHECK((o.kept > 0) == (std::find(r.pattern.begin(), r.pattern.end(), "a") != r.pattern.end()));
    CHECK(o.rows);
  }
}

TEST_CASE("GPU: captured generation in bf16 errs at most twice as much as the CPU's", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const std::int64_t batch : {1, 2, 12}) {
    Recipe r("bf16");
    r.kind = sparse(), r.batch = batch, r.head_dim = 64, r.tokens = 60;
    INFO("batch " << batch);
    const auto exact = model_of(r, DType::f32, Stream{}), naive = model_of(r, DType::bf16, Stream{}),
               ours = model_of(r, DType::bf16, gpu_stream());
    Generation a(*exact, batch, r.tokens), b(*naive, batch, r.tokens), c(*ours, batch, r.tokens);
    const Tensor tokens = random_tokens(batch, r.tokens, kVocab, 9);
    double naive_error = 0, our_error = 0;
    for (std::int64_t t = 0; t < r.tokens; ++t) {
      const Tensor next = tokens.slice(1, t, t + 1).contiguous();
      const Tensor wanted = a.append(next), low = b.append(next), got = c.append(next).to(Stream{});
      for (std::int64_t i = 0; i < wanted.numel(); ++i) {
        naive_error += std::abs(low.data<float>()[i] - wanted.data<float>()[i]);
        our_error += std::abs(got.data<float>()[i] - wanted.data<float>()[i]);
      }
    }
    CHECK(naive_error > 0);
    CHECK(our_error <= 2 * naive_error);
  }
}

TEST_CASE("GPU: every token of a greedy continuation is the likeliest of the full forward", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Recipe r("greedy");
  r.kind = sparse(), r.batch = 1;
  const auto model = model_of(r, DType::f32, gpu_stream());
  const std::int64_t prompt = 20, n = 230;
  const Tensor begin = random_tokens(1, prompt, kVocab, 6);
  Generation generation(*model, 1, 256);
  const Tensor first = generation.append(begin).to(Stream{});
  const auto id = static_cast<std::int32_t>(argmax(first.data<float>()));
  const Tensor chosen =
      generation.continue_greedily(from_values<std::int32_t>(std::vector<std::int32_t>{id}, {1}), n, kVocab);
  Tensor all = empty({1, prompt + 1 + n}, DType::i32);
  all.slice(1, 0, prompt).copy_from(begin);
  all.data<std::int32_t>()[prompt] = id;
  all.slice(1, prompt + 1, prompt + 1 + n).copy_from(chosen);
  const Tensor logits = model->logits(all).to(Stream{});
  int excused = 0, wrong = 0;
  for (std::int64_t t = prompt - 1; t < prompt + n; ++t) {
    const float* row = logits.data<float>() + t * kVocab;
    const std::int64_t token = all.data<std::int32_t>()[t + 1], best = argmax(row);
    if (token == best) continue;
    ++(row[best] - row[token] < 1e-3F ? excused : wrong);
  }
  CHECK(wrong == 0);
  CHECK(excused <= 1);
}

TEST_CASE("GPU: a greedy continuation, tokens one by one and a second run are the same bits", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const std::int64_t batch : {1, 3, 10}) {
    Recipe r("bits");
    r.kind = sparse(), r.batch = batch;
    INFO("batch " << batch);
    const auto model = model_of(r, DType::bf16, gpu_stream());
    const Tensor prompt = random_tokens(batch, 40, kVocab, 8);
    Generation steps(*model, batch, 256), run(*model, batch, 256), again(*model, batch, 256);
    for (Generation* g : {&steps, &run, &again}) g->append(prompt);
    Tensor next = random_tokens(batch, 1, kVocab, 12);
    const Tensor chosen = run.continue_greedily(next, 100, 50), repeated = again.continue_greedily(next, 100, 50);
    int different = 0, unrepeatable = 0;
    for (std::int64_t t = 0; t < 100; ++t) {
      const Tensor logits = steps.append(next).to(Stream{});
      for (std::int64_t b = 0; b < batch; ++b) {
        const float* row = logits.data<float>() + b * kVocab;
        const auto id = static_cast<std::int32_t>(std::max_element(row, row + 50) - row);
        const std::int32_t of_run = chosen.data<std::int32_t>()[b * 100 + t];
        different += of_run != id;
        unrepeatable += repeated.data<std::int32_t>()[b * 100 + t] != of_run;
        next.data<std::int32_t>()[b] = of_run;
      }
    }
    CHECK(different == 0);
    CHECK(unrepeatable == 0);
  }
}

TEST_CASE("GPU: sequences that share a prompt begin alike and then go their ways", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Recipe r("shared");
  r.kind = sparse(), r.kind.score.norm = ScoreNorm::timestep;
  const auto model = model_of(r, DType::f32, gpu_stream());
  const Tensor prompt = random_tokens(1, 70, kVocab, 3), rest = random_tokens(3, 20, kVocab, 5);
  Generation together(*model, 3, 100);
  const Tensor first = together.append(prompt).to(Stream{});
  std::vector<std::unique_ptr<Generation>> alone;
  for (std::int64_t b = 0; b < 3; ++b) {
    alone.push_back(std::make_unique<Generation>(*model, 1, 100));
    const Tensor one = alone.back()->append(prompt).to(Stream{});
    CHECK(max_difference(first.slice(0, b, b + 1).contiguous(), one) == 0);
  }
  for (std::int64_t t = 0; t < 20; ++t) {
    const Tensor all = together.append(rest.slice(1, t, t + 1).contiguous()).to(Stream{});
    for (std::int64_t b = 0; b < 3; ++b) {
      const Tensor one = alone[static_cast<std::size_t>(b)]
                             ->append(rest.slice(0, b, b + 1).slice(1, t, t + 1).contiguous())
                             .to(Stream{});
      CHECK(max_difference(all.slice(0, b, b + 1).contiguous(), one) <= 1e-5);
    }
  }
}

TEST_CASE("GPU: 16,384 tokens hold the memory of 1,024", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Recipe r("memory");
  r.kind = sparse(), r.batch = 1;
  const auto model = model_of(r, DType::bf16, gpu_stream());
  Generation generation(*model, 1, 0);
  const Tensor start = zeros({1}, DType::i32);
  generation.append(zeros({1, 1}, DType::i32));
  const Device device = gpu_stream().device;
  Tensor next = start;
  const auto go = [&](std::int64_t tokens) {
    const Tensor chosen = generation.continue_greedily(next, tokens, kVocab);
    next = chosen.slice(1, tokens - 1, tokens).contiguous();
  };
  go(64);
  reset_peak_memory(device);
  go(1024 - 65);
  const std::int64_t peak = memory_stats(device).peak_bytes, rows = generation.cache_rows(),
                     bytes = generation.cache_bytes();
  go(16384 - 1024);
  CHECK(generation.length() == 16384);
  CHECK(memory_stats(device).peak_bytes == peak);
  CHECK(generation.cache_rows() == rows);
  CHECK(generation.cache_bytes() == bytes);
  CHECK(rows == 2 * 2 * (16 + 12));
}

TEST_CASE("GPU: generation refuses what it cannot hold, and numbers that are none", "[gpu]") {
  SIEVE_NEEDS_GPU();
  Recipe r("errors");
  r.kind = sparse(), r.arch = Arch::gpt2, r.batch = 1;
  const auto model = model_of(r, DType::f32, gpu_stream());
  Generation generation(*model, 1, 10);
  CHECK_THROWS_AS(generation.append(full({1, 1}, kVocab, DType::i32)), Error);
  CHECK_THROWS_AS(generation.append(zeros({1, 11}, DType::i32)), Error);
  generation.append(zeros({1, 10}, DType::i32));
  CHECK_THROWS_AS(generation.append(zeros({1, 1}, DType::i32)), Error);
  CHECK_THROWS_AS(generation.continue_greedily(zeros({1}, DType::i32), 1, kVocab), Error);
  model->parameters()[0]->master.fill(std::nan(""));
  Generation broken(*model, 1, 10);
  CHECK_THROWS_AS(broken.append(zeros({1, 1}, DType::i32)), Error);
  Generation greedy(*model, 1, 10);
  CHECK_THROWS_AS(greedy.continue_greedily(zeros({1}, DType::i32), 3, kVocab), Error);
}
