#include <fstream>

#include "data/prepare.h"
#include "support/catch.h"
#include "support/scratch.h"
#include "train/commands.h"
#include "train/format.h"
#include "train/idle_keys.h"
#include "train/load_config.h"
#include "train/plan.h"
#include "train/run_data.h"

using namespace sieve;
using sieve::test::Scratch;

namespace {

constexpr const char* kConfig = R"(schema: 1
model:
  n_layers: 2
  d_model: 32
  n_heads: 4
  n_kv_heads: 2
  attention:
    kinds:
      sk: {type: sparsek, k: 8, window: 8}
    pattern: [sk]
data: {train: data/train, seq_len: 64}
train:
  steps: 10
  global_batch: 512
  micro_batch: 2
)";

std::string message_of(const std::function<void()>& f, Exit code = Exit::config) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.code() == code);
    return e.what();
  }
  return "no error";
}

struct ConfigFile {
  Scratch scratch;
  std::string path = (scratch / "c.yaml").string();
  ConfigFile() { std::ofstream(path) << kConfig; }
  std::string problem(const std::vector<std::string>& overrides, int world = 1) const {
    return message_of([&] { load_run_config(path, overrides, world); });
  }
};

bool has(const std::string& text, const std::string& part) {
  INFO(text);
  INFO("wanted: " << part);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

}  // namespace

TEST_CASE("a good configuration loads, and lists take plain values") {
  const ConfigFile file;
  const RunConfig c = load_run_config(file.path, {"data.val=data/val", "train.optimizer.lr=3e-4"}, 4).config;
  CHECK(c.data.train.size() == 1);
  CHECK(c.data.train[0].path == "data/train");
  CHECK(c.data.val == std::vector<std::string>{"data/val"});
  CHECK(c.train.optimizer.lr == 3e-4);
  CHECK(c.model.attention.kinds.at("sk").k == 8);
}

TEST_CASE("a nearer length replaces a farther one") {
  const ConfigFile file;
  const auto load = [&](const std::vector<std::string>& overrides) {
    return load_run_config(file.path, overrides, 1).config.train;
  };
  CHECK(load({}).steps == 10);
  const TrainGroup tokens = load({"train.tokens=10Ki"});
  CHECK(tokens.tokens == 10240);
  CHECK_FALSE(tokens.steps.has_value());
  CHECK(load({"train.epochs=2"}).epochs == 2.0);
  std::ofstream(file.scratch / "child.yaml") << "extends: c.yaml\ntrain: {tokens: 2Ki}\n";
  const RunConfig child = load_run_config((file.scratch / "child.yaml").string(), {}, 1).config;
  CHECK(child.train.tokens == 2048);
  CHECK_FALSE(child.train.steps.has_value());
}

TEST_CASE("cross-field checks name place, key and remedy") {
  const ConfigFile file;
  const std::string c = file.path;
  has(file.problem({"model.n_heads=5"}), "command line: error: model.n_heads: 5 heads do not divide d_model = 32");
  has(file.problem({"model.n_kv_heads=3"}), "model.n_kv_heads: 3 key-value heads do not divide n_heads = 4");
  has(file.problem({"model.attention.kinds.sk.k=65"}),
      "model.attention.kinds.sk.k: 65 is larger than the context, data.seq_len = 64");
  has(file.problem({"model.attention.kinds.sk.window=65"}),
      "model.attention.kinds.sk.window: 65 is larger than the context");
  has(file.problem({"model.attention.pattern=[sk, sk, sk]"}), "model.attention.pattern: 3 entries do not fit 2 layers");
  has(file.problem({"model.attention.pattern=[full]"}),
      "model.attention.pattern: names \"full\", which attention.kinds does not define");
  has(file.problem({"model.max_seq=32"}), "model.max_seq: 32 is shorter than data.seq_len = 64");
  has(file.problem({"train.global_batch=500"}),
      "train.global_batch: 500 tokens do not divide into micro-batches of 2 x 64 tokens on 1 rank; nearest valid "
      "values: 384 and 512");
  has(file.problem({}, 3),
      c + ":14:3: error: train.global_batch: 512 tokens do not divide into micro-batches of 2 x 64 tokens on 3 ranks; "
          "nearest valid values: 384 and 768");
  has(file.problem({"train.global_batch=100"}), "nearest valid values: 128");
  has(file.problem({"train.tokens=1M", "train.epochs=1"}),
      "train: give exactly one of tokens, steps and epochs (2 are given)");
  has(file.problem({"train.steps=null"}), "(0 are given)");
  has(file.problem({"train.schedule.warmup=10"}),
      "train.schedule.warmup: warm-up of 10 updates is not shorter than the run of 10");
  has(file.problem({"train.steps=null", "train.tokens=1024", "train.schedule.warmup=2"}),
      "not shorter than the run of 2");
  has(file.problem({"train.schedule.min_lr=1"}), "train.schedule.min_lr: 1 is above train.optimizer.lr");
  has(file.problem({"train.optimizer.betas=[0.9]"}), "train.optimizer.betas: wants two numbers");
  has(file.problem({"train.optimizer.betas=[0.9, 1.0]"}), "train.optimizer.betas: 1 is outside [0, 1)");
  has(file.problem({"train.schedule.decay=1.5"}), "train.schedule.decay");
  has(file.problem({"device.precision=fp16"}), "device.precision");
  has(file.problem({"log.sinks=[jsonl, wandb]"}), "log.sinks: unknown sink \"wandb\"");
  has(file.problem({"train.recompute.layers=[2]"}),
      "train.recompute.layers: layer 2 does not exist; the model has layers 0 to 1");
  has(file.problem({"tokenizer.type=hf_json"}), "tokenizer.path: type hf_json wants the path of a tokenizer.json");
  has(file.problem({"tokenizer.path=x.json"}), "tokenizer.path: has no effect with type byte");
  has(file.problem({"data.train=[{path: a, weight: 1}, b]"}), "data.train: 1 of 2 sources have a weight");
  has(file.problem({"model.attention.kinds.sk.windwo=1"}), "did you mean \"window\"?");
  // All of them at once.
  const std::string both = file.problem({"model.n_kv_heads=3", "train.global_batch=500"});
  has(both, "n_kv_heads");
  has(both, "global_batch");
}

TEST_CASE("options without effect are named") {
  const ConfigFile file;
  const auto idle = [&](const std::vector<std::string>& overrides) {
    const LoadedConfig loaded = load_run_config(file.path, overrides, 1);
    std::string text;
    for (const auto& line : idle_keys(loaded.config, loaded.tree)) text += line + "\n";
    return text;
  };
  CHECK(idle({"data.val=data/val"}).empty());
  const std::string dense = "model.attention.kinds.full.";
  const std::string full = "model.attention.kinds.full={type: full, gate: hard, pool: exact, score: {temperature: 2}}";
  CHECK(idle({full}) ==
        "command line: warning: " + dense +
            "gate: has no effect: only type sparsek has a scoring network, this is full\n" + "command line: warning: " +
            dense + "score.temperature: has no effect: only type sparsek has a scoring network, this is full\n" +
            "command line: warning: " + dense +
            "pool: has no effect: only type sparsek has a scoring network, this is full\n");
  has(idle({"model.attention.kinds.w={type: sliding_window, window: 8, candidates: at_once}"}),
      "kinds.w.candidates: has no effect: only type sparsek has a scoring network, this is sliding_window");
  has(idle({"model.attention.kinds.w={type: random_rows, k: 4, window: 8, gate: prob}"}),
      "kinds.w.gate: has no effect: type random_rows selects by random numbers");
  CHECK(idle({"model.attention.kinds.w={type: random_rows, k: 4, window: 8, candidates: at_once}"}).empty());
  CHECK(idle({"model.attention.kinds.w={type: random_rows, k: 4, window: 8, seed: 5}"}).empty());
  has(idle({"model.attention.kinds.w={type: bigbird, block: 4, window_blocks: 2, seed: 5}"}),
      "kinds.w.seed: has no effect: only type random_rows");
  has(idle({"model.attention.kinds.w={type: top_k, k: 4, part: local}"}),
      "kinds.w.part: has no effect: only types strided and fixed");
  CHECK(idle({"model.attention.kinds.w={type: fixed, stride: 8, summary: 2, part: local}"}).empty());
  has(idle({"model.attention.kinds.sk.clamp_distance=32"}),
      "clamp_distance: has no effect: it belongs to positions: clamp");
  CHECK(idle({"model.attention.kinds.sk={clamp_distance: 32, positions: clamp}"}).empty());
  has(idle({"model.arch=gpt2", "model.rope.theta=500"}), "model.rope.theta: has no effect: model.arch gpt2");
  has(idle({"model.arch=gpt2", "model.attention.kinds.sk.positions=none"}), "sk.positions: has no effect: model.arch");
  has(idle({"train.schedule.decay=0.5"}), "train.schedule.decay: has no effect: it belongs to schedule type wsd");
  CHECK(idle({"train.schedule={type: wsd, decay: 0.5}"}).empty());
  has(idle({"train.schedule={type: constant, min_lr: 1e-5}"}), "train.schedule.min_lr: has no effect");
  has(idle({"train.nonfinite={action: stop, max: 9}"}), "train.nonfinite.max: has no effect");
  has(idle({"eval.every=7"}), "eval.every: has no effect: data.val is empty");
  CHECK(idle({"eval.every=7", "data.val=data/val"}).empty());
  CHECK(idle({"log.per_layer=true"}).empty());
  has(idle({"log.per_layer=true", "model.attention.kinds.full={type: full}", "model.attention.pattern=[full]"}),
      "log.per_layer: has no effect: no layer's pattern selects keys");
  // What only repeats the default is no mistake, and a resolved configuration is a good input.
  CHECK(idle({"model.attention.kinds.full={type: full, gate: kv}"}).empty());
  LoadedConfig resolved = load_run_config(file.path, {"data.val=data/val"}, 1);
  resolve_config(resolved.config, 300, 1);
  std::ofstream(file.scratch / "resolved.yaml") << dump_yaml(resolved.config);
  const LoadedConfig again = load_run_config((file.scratch / "resolved.yaml").string(), {}, 1);
  CHECK(idle_keys(again.config, again.tree).empty());
}

TEST_CASE("a plan that does not fit says how to shrink it") {
  const ConfigFile file;
  RunConfig config = load_run_config(file.path, {"train.micro_batch=8"}, 1).config;
  resolve_config(config, 300, 1);
  const RunPlan plan = make_plan(config, scale_of(config, 1, 0), 1, 1.0);
  const auto lines = memory_help(config, plan);
  REQUIRE(lines.size() >= 3);
  has(lines.front(), "activations");
  has(lines.front(), "there are ");
  std::string all;
  for (const auto& line : lines) all += line + "\n";
  has(all, "shrink train.micro_batch=4: ");
  has(all, "shrink train.recompute={attention: true, mlp: true} (slower): ");
  // What it promises is what the plan of the changed configuration says.
  RunConfig half = load_run_config(file.path, {"train.micro_batch=4"}, 1).config;
  resolve_config(half, 300, 1);
  const double left = make_plan(half, scale_of(half, 1, 0), 1, 1.0).memory.total();
  CHECK(left < plan.memory.total());
  has(all, "train.micro_batch=4: " + format_bytes(left) + "/rank");
}

TEST_CASE("a plan counts what is shared, what is made again and what lies elsewhere") {
  const ConfigFile file;
  const auto plan_of = [&](const std::vector<std::string>& more, int ranks) {
    RunConfig c = load_run_config(file.path, more, ranks).config;
    resolve_config(c, 300, ranks);
    return make_plan(c, scale_of(c, ranks, 0), ranks, 1.0).memory;
  };
  const MemoryPlan plain = plan_of({"device.type=cpu"}, 2), shared = plan_of({"device.type=cpu", "parallel.zero=1"}, 2);
  CHECK(shared.optimizer * 2 == plain.optimizer);
  CHECK(plain.recomputed == 0);
  const MemoryPlan again = plan_of({"device.type=cpu", "train.recompute.mlp=true"}, 2);
  CHECK(again.recomputed > 0);
  CHECK(again.recomputed == Approx(plain.activations - again.activations));
  const MemoryPlan gpu = plan_of({"device.type=cuda"}, 2);  // planned here, wherever it will run
  CHECK(gpu.snapshot > 0);
  CHECK(gpu.total() == gpu.weights + gpu.optimizer + gpu.gradients + gpu.activations + gpu.loss);
  CHECK(plain.total() ==
        plain.weights + plain.optimizer + plain.gradients + plain.activations + plain.loss + plain.snapshot);
}

TEST_CASE("config check tells the two schemas apart") {
  const ConfigFile file;
  CHECK_NOTHROW(check_config(file.path, {}, 1));
  std::ofstream(file.scratch / "e.yaml")
      << "eval: {checkpoints: [runs/a], data: [x.txt], method: sliding, fail_if: [\"token_ppl > 3\"]}\n";
  CHECK_NOTHROW(check_config((file.scratch / "e.yaml").string(), {}, 1));
  has(message_of([&] { check_config((file.scratch / "e.yaml").string(), {"eval.fail_if=[token_ppl]"}, 1); }),
      "expected a comparison");
  has(message_of([&] { check_config((file.scratch / "e.yaml").string(), {"eval.strde=1"}, 1); }),
      "did you mean \"stride\"?");
  has(message_of([&] { check_config((file.scratch / "e.yaml").string(), {"eval.contexts=[0]"}, 1); }),
      "eval.contexts: 0 is not a number of tokens");
}

TEST_CASE("without a file the built-in demo stands in") {
  const LoadedConfig demo = load_run_config("", {"train.steps=70"}, 2);
  CHECK(demo.config.run_dir() == "runs/demo");
  CHECK(demo.config.train.steps == 70);
  CHECK(demo.tree.origin_of("data.train").source == "built-in demo");
  has(message_of([&] { load_run_config("", {}, 3); }), "built-in demo:");
  const LoadedConfig based = load_run_config("", {"train.steps=7"}, 1, "model: {n_layers: 3}", "checkpoint x");
  CHECK(based.config.model.n_layers == 3);
  CHECK(based.config.run_dir() == "runs/run");
}

TEST_CASE("checks that need the data") {
  const ConfigFile file;
  const Scratch& s = file.scratch;
  std::ofstream(s / "a.txt") << std::string(500, 'x');
  std::ofstream(s / "b.txt") << std::string(500, 'y');
  for (const char* name : {"a", "b"})
    prepare(*make_byte_tokenizer(),
            {.inputs = {(s / (std::string(name) + ".txt")).string()}, .output = (s / name).string()});
  const std::string a = (s / "a" / "train").string(), b = (s / "b" / "train").string();
  const auto open = [&](std::vector<std::string> overrides) {
    overrides.insert(overrides.begin(), "train.global_batch=128");
    const LoadedConfig loaded = load_run_config(file.path, overrides, 1);
    open_run_data(loaded.config, loaded.tree);
  };
  CHECK_NOTHROW(open({"data.train=" + a, "data.val=" + b}));
  has(message_of([&] { open({"data.train=[" + a + ", " + b + "]", "data.val=" + b}); }), "is also a training shard");
  std::filesystem::create_symlink(s / "b" / "train", s / "alias");
  has(message_of([&] { open({"data.train=" + b, "data.val=" + (s / "alias").string()}); }), "data.val: ");
  has(message_of([&] {
        open({"data.train=" + a, "model.vocab_size=256"});
      }),
      "model.vocab_size: 256 rows cannot hold the 257 tokens");
  has(message_of([&] { open({"data.train=[]"}); }), "data.train: names no training shards");
  has(message_of([&] { open({"data.train=" + a, "data.seq_len=512", "train.global_batch=1024"}); }, Exit::data), "512");
}

TEST_CASE("resolving fills every auto once") {
  const ConfigFile file;
  CHECK(*load_run_config(file.path, {"checkpoint.every_minutes=2"}, 2).config.checkpoint.every_minutes ==
        2);  // no unit
  has(message_of([&] { load_run_config(file.path, {"checkpoint.every_minutes=2m"}, 2); }), "checkpoint.every_minutes");
  RunConfig c = load_run_config(file.path, {"run.name=x"}, 2).config;
  c.train.global_batch.reset();
  resolve_config(c, 257, 2);
  CHECK(*c.run.dir == "runs/x");
  CHECK(*c.train.global_batch == 256);
  CHECK(*c.model.vocab_size == 257);
  CHECK(*c.model.attention.kinds.at("sk").score.slope == 1.0 / 64);
  RunConfig again = c;
  again.data.seq_len = 128;  // the slope of a checkpoint stays when its model is used at another length
  resolve_config(again, 300, 1);
  CHECK(*again.model.attention.kinds.at("sk").score.slope == 1.0 / 64);
  CHECK(*again.model.vocab_size == 257);
}
