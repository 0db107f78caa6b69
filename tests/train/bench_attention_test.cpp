// `sieve bench attention` at sizes that take milliseconds.
#include "train/bench_attention.h"

#include <cmath>
#include <functional>
#include <iostream>
#include <sstream>

#include "dist/communicator.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "support/catch.h"
#include "support/gpu.h"
#include "support/scratch.h"
#include "train/trained_scores.h"

using namespace sieve;
using sieve::test::Scratch;
using sieve::test::text_of;

namespace {

// What f prints.
std::string printed(const std::function<void()>& f) {
  struct Redirect {
    std::ostringstream text;
    std::streambuf* before = std::cout.rdbuf(text.rdbuf());
    ~Redirect() { std::cout.rdbuf(before); }
  } redirect;
  f();
  return redirect.text.str();
}

BenchAttentionOptions small(const std::string& device) {
  BenchAttentionOptions o;
  o.lengths = {"192", "64"};
  o.rows = 4;
  o.heads = 4;
  o.kv_heads = 2;
  o.k = 16;
  o.window = 16;
  o.seconds = 1e-4;
  o.device = device;
  return o;
}

void run(const BenchAttentionOptions& o) { CHECK(bench_attention(o, *make_communicator()) == Exit::ok); }

std::string refusal(const std::function<void(BenchAttentionOptions&)>& change, Exit code) {
  BenchAttentionOptions o = small("cpu");
  change(o);
  std::string what = "no error";
  const std::string table = printed([&] {
    try {
      bench_attention(o, *make_communicator());
    } catch (const Error& e) {
      CHECK(e.code() == code);
      what = e.what();
    }
  });
  CHECK(table.empty());  // nothing was measured
  return what;
}

// Every row of the table has its times, and JSON and CSV say the same.
void check_table(const std::string& device) {
  const Scratch folder;
  BenchAttentionOptions o = small(device);
  o.json_file = (folder / "a.json").string();
  o.csv_file = (folder / "a.csv").string();
  const std::string table = printed([&] { run(o); });
  INFO(table);
  for (const char* part : {"| full | 64 |", "| sliding_window | 192 |", "| sparsek | 192 |", "scores=iid", "H=4/2"})
    CHECK(table.find(part) != std::string::npos);
  const Json all = read_json(o.json_file);
  REQUIRE(all["results"].size() == 6);
  for (const Json& row : all["results"]) {
    CHECK(row["forward_ms"].get<double>() > 0);
    CHECK(row["backward_ms"].get<double>() > 0);
    CHECK(row["passes"].get<std::int64_t>() >= 3);
    CHECK((row["selection_ms"].get<double>() > 0) == (row["pattern"] == "sparsek"));
    CHECK((row["selection_backward_ms"].get<double>() > 0) == (row["pattern"] == "sparsek"));
    CHECK_FALSE(row["kernels_ms"].empty());
  }
  CHECK(all["results"][0]["T"] == 64);  // rising
  CHECK(all["kv_heads"] == 2);
  const std::string csv = text_of(o.csv_file);
  CHECK(std::count(csv.begin(), csv.end(), '\n') == 7);
}

AttentionTiming timing(const std::string& pattern, std::int64_t T, double total) {
  return {.pattern = pattern, .T = T, .total = total};
}

}  // namespace

TEST_CASE("attention is timed pattern by pattern") { check_table("cpu"); }

TEST_CASE("attention is timed on a GPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  check_table("cuda");
}

TEST_CASE("forward alone and every kind of scores") {
  const Scratch folder;
  const std::string file = (folder / "scores.safetensors").string();
  write_safetensors(file, {{"scores", random_normal({3, 50}, 0, 1, 1, 1)}});
  for (const std::string& scores : {std::string("sigma4"), std::string("fifo"), file}) {
    BenchAttentionOptions o = small("cpu");
    o.patterns = {"sparsek"};
    o.scores = scores;
    o.dtype = "bf16";
    o.forward_only = o.rotary = true;
    o.json_file = (folder / "a.json").string();
    printed([&] { run(o); });
    for (const Json& row : read_json(o.json_file)["results"]) {
      CHECK(row["forward_ms"] == row["total_ms"]);
      CHECK(row["backward_ms"] == 0);
    }
  }
}

TEST_CASE("a length that would take too long is left out") {
  BenchAttentionOptions o = small("cpu");
  o.patterns = {"full"};
  o.pass_seconds = 1e-9;
  const std::string table = printed([&] { run(o); });
  CHECK(table.find("| full | 192 | left out") != std::string::npos);
}

TEST_CASE("options that make no sense are refused before anything is measured") {
  const auto has = [](const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
  };
  using O = BenchAttentionOptions;
  has(refusal([](O& o) { o.patterns = {"full", "dense"}; }, Exit::config), "full, sliding_window, sparsek");
  has(refusal([](O& o) { o.k = 0; }, Exit::config), "k 0 must be at least 1");
  has(refusal([](O& o) { o.window = 0; }, Exit::config), "window 0");
  has(refusal([](O& o) { o.heads = 3; }, Exit::config), "--rows 4 is not a multiple of --heads 3");
  has(refusal([](O& o) { o.kv_heads = 3; }, Exit::config), "not a multiple of n_kv_heads 3");
  has(refusal([](O& o) { o.gate = "soft"; }, Exit::config), "kv, value, prob, hard");
  has(refusal([](O& o) { o.dtype = "fp8"; }, Exit::config), "auto, bf16, fp32");
  has(refusal([](O& o) { o.lengths = {"64", "4x"}; }, Exit::config), "\"4x\" is no length");
  has(refusal([](O& o) { o.scores = "nowhere.safetensors"; }, Exit::data), "nowhere.safetensors");
  const Scratch folder;
  const std::string file = (folder / "scores.safetensors").string();
  write_safetensors(file, {{"scores", full({2, 8}, std::nan(""), DType::f32)}});
  has(refusal([&](O& o) { o.scores = file; }, Exit::data), "not all finite");
}

TEST_CASE("the scores of a model are those that its layers select by") {
  for (const Arch arch : {Arch::llama, Arch::gpt2}) {
    ModelConfig config;
    config.arch = arch;
    config.n_layers = 3;
    config.d_model = 32;
    config.n_heads = 4;
    config.n_kv_heads = 2;
    AttentionKindConfig& plain = config.attention.kinds["sk"];
    plain.type = AttentionKind::sparsek;
    plain.k = plain.window = 8;
    AttentionKindConfig& normed = config.attention.kinds["normed"] = plain;
    normed.score.norm = ScoreNorm::timestep;
    config.attention.kinds["full"].type = AttentionKind::full;
    config.attention.pattern = {"sk", "full", "normed"};
    config.resolve(50, 64);
    const Decoder model(config, {.compute = DType::f32, .seed = 3, .recompute = {}});
    Tensor tokens = empty({2, 64}, DType::i32);
    for (std::int64_t i = 0; i < tokens.numel(); ++i) tokens.data<std::int32_t>()[i] = static_cast<int>(i * i % 50);
    std::vector<SelectionStats> stats;
    model.loss_sum({tokens, tokens, {}}, nullptr, &stats);
    const std::vector<Tensor> scores = layer_scores(model, tokens);
    REQUIRE(scores.size() == 3);
    CHECK_FALSE(scores[1].defined());
    for (const std::size_t layer : {0, 2}) {
      REQUIRE(scores[layer].shape() == Shape{2, 2, 64});
      double deviation = 0;
      for (int row = 0; row < 4; ++row) {
        const float* s = scores[layer].data<float>() + row * 64;
        double sum = 0, squares = 0;
        for (int t = 0; t < 64; ++t) sum += s[t];
        for (int t = 0; t < 64; ++t) squares += (s[t] - sum / 64) * (s[t] - sum / 64);
        deviation += std::sqrt(squares / 64) / 4;
      }
      INFO("layer " << layer);
      CHECK(deviation > 0.01);
      CHECK(deviation == Approx(stats[layer].score_std).epsilon(1e-6));
    }
  }
}

TEST_CASE("lengths are read in powers of 1024") {
  CHECK(parse_length("512") == 512);
  CHECK(parse_length("4k") == 4096);
  CHECK(parse_length("4Ki") == 4096);
  CHECK(parse_length("1M") == 1048576);
  for (const char* bad : {"", "k", "-1", "0", "4 k", "4kk", "1.5k", "99999999999", "2048M"}) {
    INFO(bad);
    CHECK_THROWS_AS(parse_length(bad), Error);
  }
}

TEST_CASE("types that show pairs are timed too, but for those that need a model") {
  BenchAttentionOptions o = small("cpu");
  o.patterns = {"strided", "fixed", "longformer", "bigbird", "hash", "moba"};
  const std::string table = printed([&] { run(o); });
  INFO(table);
  for (const char* part : {"| strided | 64 |", "| fixed | 192 |", "| hash | 192 |", "| moba | 192 |"})
    CHECK(table.find(part) != std::string::npos);
  for (const char* type : {"top_k", "dsa", "nsa", "linear", "gla", "random_rows"})
    CHECK(refusal([&](auto& x) { x.patterns = {type}; }, Exit::config).find(type) != std::string::npos);
}

TEST_CASE("visible pairs are counted") {
  AttentionSpec spec;
  for (const std::int64_t T : {1, 5, 8, 9, 40}) {
    for (int kind = 0; kind < 3; ++kind) {
      spec.kind = static_cast<AttentionKind>(kind);
      spec.window = 8;
      spec.sparsek.k = 6;
      std::int64_t pairs = 0;
      for (std::int64_t i = 0; i < T; ++i) {
        if (kind == 0) pairs += i + 1;
        else pairs += std::min<std::int64_t>(i + 1, 8) + (kind == 2 ? std::clamp<std::int64_t>(i + 1 - 8, 0, 6) : 0);
      }
      INFO("T " << T << " kind " << kind);
      CHECK(visible_pairs(spec, T) == static_cast<double>(pairs));
    }
  }
}

TEST_CASE("the crossover lies on the straight line of the log-log plot") {
  std::vector<AttentionTiming> t = {timing("full", 1024, 1), timing("full", 2048, 4), timing("full", 4096, 16),
                                    timing("sparsek", 1024, 2), timing("sparsek", 2048, 4 / 2.0)};
  const auto at = crossover(t, "sparsek");  // ratios 2 and 1/2: half way between the logarithms
  REQUIRE(at.has_value());
  CHECK(at->length == Approx(1024 * std::sqrt(2.0)));
  CHECK_FALSE(at->at_shortest);
  t.push_back(timing("sliding_window", 1024, 0.5));
  REQUIRE(crossover(t, "sliding_window").has_value());
  CHECK(crossover(t, "sliding_window")->at_shortest);
  CHECK_FALSE(crossover({timing("full", 64, 1), timing("sparsek", 64, 2)}, "sparsek").has_value());
  // A short length that happens to win says nothing.
  const std::vector<AttentionTiming> lucky = {timing("full", 64, 1),     timing("full", 128, 1),
                                              timing("full", 256, 1),    timing("sparsek", 64, 0.5),
                                              timing("sparsek", 128, 2), timing("sparsek", 256, 0.5)};
  REQUIRE(crossover(lucky, "sparsek").has_value());
  CHECK(crossover(lucky, "sparsek")->length == Approx(128 * std::sqrt(2.0)));
  t[1].missing = t[4].missing = "out of memory";
  CHECK_FALSE(crossover(t, "sparsek").has_value());
}
