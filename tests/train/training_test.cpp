#include <fstream>
#include <iostream>
#include <map>
#include <sstream>

#include "core/log.h"
#include "core/parallel_for.h"
#include "core/rng.h"
#include "data/prepare.h"
#include "dist/signals.h"
#include "dist/thread_communicator.h"
#include "io/json.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/scratch.h"
#include "train/checkpoint.h"
#include "train/commands.h"

using namespace sieve;
using sieve::test::same_bits;
using sieve::test::Scratch;
using sieve::test::text_of;

namespace {

// Text with structure that a few dozen updates can learn: words from a small vocabulary.
std::string words(int count, std::uint64_t seed) {
  static constexpr const char* kWords[] = {"alpha ", "beta ",   "gamma ", "delta ",
                                           "sieve ", "window ", "key ",   "value\n"};
  const Philox random{seed, 1};
  std::string text;
  for (int i = 0; i < count; ++i) text += kWords[random.bits64(static_cast<std::uint64_t>(i)) % 8];
  return text;
}

struct Workshop {
  Scratch scratch;
  Workshop() {
    log_init(0, LogLevel::error);
    set_num_threads(1);
    std::filesystem::create_directories(scratch / "text");
    for (int i = 0; i < 8; ++i)
      std::ofstream(scratch / "text" / (std::to_string(i) + ".txt")) << words(300, static_cast<std::uint64_t>(i));
    prepare(*make_byte_tokenizer(),
            {.inputs = {(scratch / "text").string()}, .output = (scratch / "data").string(), .val_fraction = 0.2});
    std::ofstream(scratch / "tiny.yaml") << R"(schema: 1
run: {seed: 5}
model:
  n_layers: 2
  d_model: 32
  n_heads: 2
  attention:
    kinds:
      sk: {type: sparsek, k: 8, window: 8}
    pattern: [sk]
data: {train: [)" << (scratch / "data/train").string()
                                         << "], val: [" << (scratch / "data/val").string() << R"(], seq_len: 64}
train:
  steps: 8
  global_batch: 512
  micro_batch: 2
  optimizer: {lr: 3e-3}
  schedule: {warmup: 2, min_lr: 3e-4}
eval: {every: 4, tokens: 512}
checkpoint: {every: 3, keep_last: 9}
log: {every: 2, peak_tflops: 1}
)";
  }
  std::filesystem::path run(const std::string& name) const { return scratch / name; }
  TrainOptions options(const std::string& name, std::vector<std::string> overrides) const {
    overrides.push_back("run.dir=" + run(name).string());
    overrides.push_back("device.type=cpu");  // these tests are about the CPU, also on a machine with GPUs
    return {.config = (scratch / "tiny.yaml").string(),
            .overrides = overrides,
            .progress = false,
            .argv = {"sieve", "pretrain"}};
  }
  Exit train(const std::string& name, const std::vector<std::string>& overrides = {},
             const std::string& resume = "never") const {
    SelfCommunicator self;
    TrainOptions o = options(name, overrides);
    o.resume = resume;
    return pretrain(o, self);
  }
  std::string model(const std::string& name, const std::string& checkpoint = "latest") const {
    return text_of(run(name) / "checkpoints" / checkpoint / "model.safetensors") +
           text_of(run(name) / "checkpoints" / checkpoint / "sparsek.safetensors");
  }
  std::vector<Json> rows(const std::string& name) const {
    std::vector<Json> out;
    std::istringstream lines(text_of(run(name) / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) out.push_back(Json::parse(line));
    return out;
  }
};

// pretrain on threads as ranks; Exit::ok where all of them say so. Catch2 is for one thread: nothing is checked inside.
Exit train_on_ranks(int ranks, const TrainOptions& options) {
  std::vector<Exit> codes(static_cast<std::size_t>(ranks), Exit::internal);
  testing::run_ranks(
      ranks, [&](Communicator& comm) { codes[static_cast<std::size_t>(comm.rank())] = pretrain(options, comm); });
  for (const Exit code : codes) {
    if (code != codes.front()) return Exit::internal;
  }
  return codes.front();
}

// What the commands print on stdout while it lives.
class Captured {
 public:
  Captured() : old_(std::cout.rdbuf(text_.rdbuf())) {}
  ~Captured() { std::cout.rdbuf(old_); }
  std::string text() const { return text_.str(); }

 private:
  std::ostringstream text_;
  std::streambuf* old_;
};

std::string error_of(const std::function<void()>& f, Exit code) {
  try {
    f();
  } catch (const Error& e) {
    CHECK(e.code() == code);
    return e.what();
  }
  return "no error";
}

bool has(const std::string& text, const std::string& part) {
  INFO(text);
  INFO("wanted: " << part);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

}  // namespace

TEST_CASE("a run learns and leaves the documented folder") {
  const Workshop w;
  REQUIRE(w.train("a", {"train.steps=60", "eval.every=30", "sample.every=30", "sample.max_new_tokens=20",
                        "log.per_layer=true", "checkpoint.every=20", "checkpoint.keep_last=2"}) == Exit::ok);
  const auto rows = w.rows("a");
  REQUIRE(rows.size() == 31);  // step 0 (validation) and every second step
  CHECK(rows[0]["step"] == 0);
  CHECK(rows[0]["loss/val"].get<double>() > 5.0);  // untrained: about ln 257 = 5.55
  CHECK(rows[1]["loss/train"].get<double>() ==
        Approx(rows[0]["loss/val"].get<double>()).margin(0.3));  // nats per token too
  CHECK(rows.back()["loss/val"].get<double>() < rows[0]["loss/val"].get<double>() - 1.5);
  CHECK(rows.back()["loss/train"].get<double>() < rows[1]["loss/train"].get<double>() - 1.5);
  for (const char* key :
       {"step", "tokens", "time", "loss/train", "loss/val", "lr", "grad_norm", "tok_s", "tflops", "mfu",
        "mfu_full_equiv", "mem/peak_gib", "data_wait_frac", "skipped_steps", "attn/0/band_over_k", "attn/1/score_std"})
    CHECK(rows.back().contains(key));
  CHECK(rows.back()["tokens"] == 60 * 512);
  for (const char* name :
       {"config.yaml", "config.input/start_00000000/argv", "config.input/start_00000000/00-tiny.yaml", "manifest.json",
        "status.json", "metrics.csv", "tb", "logs/rank0000.log", "samples/step_00000030.txt",
        "checkpoints/latest/manifest.json", "checkpoints/latest/config.json", "checkpoints/latest/tokenizer.json",
        "checkpoints/best/state.json"})
    CHECK(std::filesystem::exists(w.run("a") / name));
  CHECK(text_of(w.run("a") / "logs/rank0000.log").find('\r') == std::string::npos);
  has(text_of(w.run("a") / "logs/rank0000.log"), "selection |F|/k ");
  const Json status = read_json(w.run("a") / "status.json");
  CHECK(status["status"] == "finished");
  CHECK(status["step"] == 60);
  has(error_of([&] { w.train("a"); }, Exit::config), "is not empty: continue it with --resume auto");
  CHECK(w.train("a", {"train.steps=60", "eval.every=30"}, "must") == Exit::ok);  // nothing is left to do
}

TEST_CASE("the same bits for any threads, ranks and accumulation") {
  const Workshop w;
  for (const std::string precision : {"fp32", "bf16"}) {
    const std::vector<std::string> base{"device.precision=" + precision, "train.steps=6"};
    const std::string name = precision + "-";
    CHECK(w.train(name + "1", base) == Exit::ok);
    const std::string whole = w.model(name + "1");
    REQUIRE(whole.size() > 1000);
    for (const int threads : {2, 4}) {
      set_num_threads(threads);
      CHECK(w.train(name + "t" + std::to_string(threads), base) == Exit::ok);
      CHECK(w.model(name + "t" + std::to_string(threads)) == whole);
    }
    set_num_threads(1);
    for (const int ranks : {2, 4}) {  // 4 micro-batches a step: 2 and 1 per rank
      const std::string run = name + "r" + std::to_string(ranks);
      CHECK(train_on_ranks(ranks, w.options(run, base)) == Exit::ok);
      CHECK(w.model(run) == whole);
      const auto a = w.rows(name + "1"), b = w.rows(run);
      REQUIRE(a.size() == b.size());
      for (std::size_t i = 0; i < a.size(); ++i) {
        for (const char* key : {"step", "tokens", "loss/train", "loss/val", "lr", "grad_norm"}) {
          if (a[i].contains(key)) CHECK(a[i][key] == b[i][key]);
        }
      }
    }
    auto other = base;
    other.push_back("parallel.bucket=1000");
    CHECK(w.train(name + "bucket", other) == Exit::ok);
    CHECK(w.model(name + "bucket") == whole);
    other.back() = "train.recompute={attention: true, mlp: true}";
    CHECK(w.train(name + "recompute", other) == Exit::ok);
    CHECK(w.model(name + "recompute") == whole);
    other.back() = "run.seed=6";
    CHECK(w.train(name + "seed", other) == Exit::ok);
    CHECK(w.model(name + "seed") != whole);
  }
}

TEST_CASE("a run that goes on has the bits of one that never stopped") {
  const Workshop w;
  REQUIRE(w.train("whole", {"log.every=1"}) == Exit::ok);
  REQUIRE(w.train("cut", {"log.every=1"}) == Exit::ok);
  const auto checkpoints = w.run("cut") / "checkpoints";
  // From the middle, by path: the later checkpoints belong to the abandoned end and are set aside.
  REQUIRE(w.train("cut", {"log.every=1"}, (checkpoints / "step_00000003").string()) == Exit::ok);
  CHECK(std::filesystem::exists(checkpoints / "superseded/step_00000006"));
  CHECK(w.model("cut") == w.model("whole"));
  CHECK(text_of(checkpoints / "latest" / "optimizer.safetensors") ==
        text_of(w.run("whole") / "checkpoints/latest/optimizer.safetensors"));
  const auto a = w.rows("whole"), b = w.rows("cut");
  REQUIRE(a.size() == 9);
  REQUIRE(b.size() == a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (const char* key : {"step", "tokens", "loss/train", "loss/val", "grad_norm"}) {
      if (a[i].contains(key)) CHECK(a[i][key] == b[i][key]);
    }
  }
  SECTION("also on another number of ranks") {
    TrainOptions o = w.options("cut", {"log.every=1"});
    o.resume = (checkpoints / "step_00000003").string();
    CHECK(train_on_ranks(2, o) == Exit::ok);
    CHECK(w.model("cut") == w.model("whole"));
  }
  SECTION("what must not change is refused with its keys") {
    const std::string message = error_of(
        [&] {
          w.train("cut", {"train.optimizer.lr=1", "model.attention.kinds.sk.k=9"}, "auto");
        },
        Exit::config);
    has(message, "train.optimizer.lr: 0.003 in the checkpoint, 1 now");
    has(message, "model.attention.kinds.sk.k: 8 in the checkpoint, 9 now");
    has(message, "sieve finetune");
    has(error_of(
            [&] {
              w.train("cut", {"data.train=[" + (w.scratch / "data/val").string() + "]", "data.val=[]"}, "auto");
            },
            Exit::config),
        "data.train: other shards");
    has(error_of([&] { w.train("cut", {"train.steps=5"}, "auto"); }, Exit::config), "is at step 8, beyond the 5 steps");
  }
  SECTION("a damaged checkpoint is refused and the last good one offered") {
    const auto path = checkpoints / "latest" / "model.safetensors";
    std::string bytes = text_of(path);
    bytes[bytes.size() - 5] = static_cast<char>(bytes[bytes.size() - 5] ^ 1);
    std::ofstream(path, std::ios::binary) << bytes;
    const std::string message = error_of([&] { w.train("cut", {"log.every=1"}, "auto"); }, Exit::data);
    has(message, "step_00000008");
    has(message, "model.safetensors");
    has(message, "last good checkpoint: " + (checkpoints / "step_00000006").string());
    CHECK(w.train("cut", {"log.every=1"}, (checkpoints / "step_00000006").string()) == Exit::ok);
    CHECK(w.model("cut") == w.model("whole"));
  }
}

TEST_CASE("requests to stop save and say how they ended") {
  const Workshop w;
  REQUIRE(w.train("whole") == Exit::ok);
  const std::pair<StopReason, Exit> cases[] = {{StopReason::preempted, Exit::preempted},
                                               {StopReason::interrupted, Exit::interrupted}};
  for (const auto& [reason, code] : cases) {
    const std::string name = "stop" + std::to_string(static_cast<int>(code));
    request_stop(reason);
    CHECK(w.train(name) == code);
    request_stop(StopReason::none);
    CHECK(read_json(w.run(name) / "status.json")["status"] == "preempted");
    CHECK(read_json(w.run(name) / "status.json")["exit_code"] == static_cast<int>(code));
    CHECK(std::filesystem::exists(w.run(name) / "checkpoints/step_00000001/state.json"));
    CHECK(w.train(name, {}, "auto") == Exit::ok);
    CHECK(w.model(name) == w.model("whole"));
  }
  CHECK(w.train("time", {"run.max_time=0"}) == Exit::preempted);
  CHECK(w.train("time", {"run.max_time=1h"}, "auto") == Exit::ok);
  CHECK(w.model("time") == w.model("whole"));
}

TEST_CASE("a stop loses no validation") {
  const Workshop w;
  const std::vector<std::string> each{"eval.every=1", "log.every=1"};
  REQUIRE(w.train("whole", each) == Exit::ok);
  request_stop(StopReason::preempted);
  CHECK(w.train("cut", each) == Exit::preempted);
  request_stop(StopReason::none);
  CHECK(read_json(w.run("cut") / "checkpoints/step_00000001/state.json")["val_loss"].is_number());
  REQUIRE(w.train("cut", each, "must") == Exit::ok);
  const auto a = w.rows("whole"), b = w.rows("cut");
  REQUIRE(a.size() == 9);
  REQUIRE(b.size() == a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (const char* key : {"step", "loss/val"}) CHECK(a[i].at(key) == b[i].at(key));
  }
  for (const char* key : {"val_loss", "best_val_loss"})
    CHECK(read_json(w.run("cut") / "checkpoints/latest/state.json")[key] ==
          read_json(w.run("whole") / "checkpoints/latest/state.json")[key]);
  // Losses of another validation set are not ranked with the old ones.
  auto other = each;
  other.insert(other.end(), {"eval.tokens=64", "train.steps=9"});
  REQUIRE(w.train("cut", other, "must") == Exit::ok);
  const Json last = read_json(w.run("cut") / "checkpoints/best/state.json");
  CHECK(last["step"] == 9);
  CHECK(last["best_val_loss"] == last["val_loss"]);
}

TEST_CASE("updates that are not finite are skipped, up to the budget") {
  const Workshop w;
  const std::vector<std::string> wild{"train.optimizer.lr=1e30",
                                      "train.grad_clip=0",
                                      "train.schedule.warmup=0",
                                      "train.schedule.min_lr=0",
                                      "log.every=1",
                                      "eval.at_start=false",
                                      "eval.every=0"};
  auto stop = wild, skip = wild;
  stop.push_back("train.nonfinite.action=stop");
  skip.push_back("train.nonfinite.max=2");
  CHECK(w.train("stop", stop) == Exit::nonfinite);
  CHECK(w.train("skip", skip) == Exit::nonfinite);
  CHECK(read_json(w.run("stop") / "status.json")["step"] ==
        2);  // the first update went through, the second step is not finite
  const Json status = read_json(w.run("skip") / "status.json");
  CHECK(status["status"] == "failed");
  CHECK(status["step"] == 4);
  CHECK(status["exit_code"] == 5);
  const auto rows = w.rows("skip");
  CHECK(rows.back()["step"] == 3);
  CHECK(rows.back()["skipped_steps"] == 2);
  CHECK((rows.back()["loss/train"].is_null() || rows.back()["grad_norm"].is_null()));
}

TEST_CASE("a dense checkpoint becomes a sparse one") {
  const Workshop w;
  const std::vector<std::string> dense{"model.attention.kinds.full={type: full}", "model.attention.pattern=[full]",
                                       "train.steps=20"};
  REQUIRE(w.train("dense", dense) == Exit::ok);
  const std::string from = "init_from.path=" + w.run("dense").string();
  SelfCommunicator self;
  const auto tune = [&](const std::string& name, const std::vector<std::string>& overrides) {
    return finetune(w.options(name, overrides), self);
  };
  has(error_of([&] { tune("no", {from}); }, Exit::data), "layers.0.attn.sparsek.score.weight");
  CHECK_FALSE(std::filesystem::exists(w.run("no")));
  has(error_of([&] { tune("no", {}); }, Exit::config), "give init_from.path");
  has(error_of([&] { w.train("no", {from}); }, Exit::config), "use sieve finetune");
  // k + W >= T: every key is selected with weight 1, so the loss before the first update is the dense one.
  const std::string allow = "init_from.allow_new=['*.sparsek.*']";
  REQUIRE(tune("sparse", {from, allow, "model.attention.kinds.sk={type: sparsek, k: 60, window: 8}",
                          "train.steps=4"}) == Exit::ok);
  double last = 0;
  for (const auto& row : w.rows("dense")) last = row.value("loss/val", last);
  CHECK(w.rows("sparse")[0]["loss/val"].get<double>() == Approx(last).epsilon(1e-5));
  CHECK(w.rows("sparse")[0]["step"] == 0);
  SECTION("the model's shapes come from the checkpoint, and it can go on") {
    TrainOptions o = w.options("again", {"init_from.path=" + w.run("sparse").string(),
                                         "data.train=[" + (w.scratch / "data/train").string() + "]", "data.seq_len=64",
                                         "train={steps: 3, micro_batch: 2}", "log.peak_tflops=1"});
    o.config.clear();
    REQUIRE(finetune(o, self) == Exit::ok);
    CHECK(load_model(w.run("again")).config.model.attention.kinds.at("sk").k == 60);
    o.overrides.push_back("train.steps=5");
    o.resume = "must";
    CHECK(finetune(o, self) == Exit::ok);
    CHECK(load_model(w.run("again")).state.step == 5);
  }
  SECTION("frozen parameters stay") {
    REQUIRE(tune("scorer", {from, allow, "train.steps=4",
                            "train.freeze=['embed.*', '*.qkv.*', '*.out.*', '*.mlp.*', '*norm*']"}) == Exit::ok);
    const LoadedModel before = load_model(w.run("dense")), after = load_model(w.run("scorer"));
    std::map<std::string, Tensor> old;
    for (const auto& p : before.model->parameters()) old[p->name] = p->master;
    for (const auto& p : after.model->parameters()) {
      if (!p->scorer) CHECK(same_bits(p->master, old.at(p->name)));
    }
    has(error_of([&] { tune("none", {from, allow, "train.freeze=['*']"}); }, Exit::config), "freezes every parameter");
    has(error_of(
            [&] {
              tune("typo", {from, allow, "train.freeze=['embde.*']"});
            },
            Exit::config),
        "\"embde.*\" matches no parameter");
  }
}

TEST_CASE("evaluation of checkpoints: reports and thresholds") {
  const Workshop w;
  REQUIRE(w.train("a", {"eval.tokens=null"}) == Exit::ok);
  SelfCommunicator self;
  const std::string val = (w.scratch / "data/val").string(), out = (w.scratch / "report.json").string();
  EvalOptions o{.target = w.run("a").string(),
                .overrides = {"eval.data=" + val, "eval.out=" + out, "eval.contexts=[32, 64]", "eval.method=sliding"}};
  o.fail_if = {"ctx64.token_ppl > 1e9", "run.val.ctx32.bits_per_byte < 0"};
  const Captured out_text;
  CHECK(evaluate(o, self) == Exit::ok);
  const Json report = read_json(out);
  REQUIRE(report["results"].size() == 2);
  CHECK(report["results"][0]["protocol"]["stride"] == 16);
  CHECK(report["results"][1]["tokens"] == report["results"][0]["tokens"]);
  o.fail_if = {"ctx64.token_ppl > 1"};
  CHECK(evaluate(o, self) == Exit::threshold);
  o.fail_if = {"token_ppl > 1"};
  has(error_of([&] { evaluate(o, self); }, Exit::config), "fits several results");
  o.fail_if = {"ctx64.bpb > 0"};
  CHECK(evaluate(o, self) == Exit::threshold);
  o.fail_if = {"ctx64.ppl < 1e9"};
  CHECK(evaluate(o, self) == Exit::threshold);
  o.target = "nowhere";  // found before anything is opened
  o.fail_if = {"ctx64.pplx > 1"};
  has(error_of([&] { evaluate(o, self); }, Exit::config), "unknown metric \"pplx\"");
  setenv("SIEVE_train__steps", "5", 1);
  setenv("SIEVE_eval__every", "2", 1);
  // Without data: the validation shards of the training, and the training's own number.
  CHECK(
      evaluate({.target = (w.run("a") / "checkpoints/latest").string(), .overrides = {}, .fail_if = {}, .json = false},
               self) == Exit::ok);
  unsetenv("SIEVE_train__steps");
  unsetenv("SIEVE_eval__every");
  const Json own = read_json(w.run("a") / "eval/val-chunked-64.json");
  double last = 0;
  for (const auto& row : w.rows("a")) last = row.value("loss/val", last);
  CHECK(own["loss"].get<double>() == Approx(last).epsilon(1e-7));
  // The same text from shards and from files: the shards of a single folder hold its files in order.
  CHECK(evaluate({.target = w.run("a").string(),
                  .overrides = {"eval.data=" + (w.scratch / "text/3.txt").string()},
                  .fail_if = {},
                  .json = true},
                 self) == Exit::ok);
  has(error_of(
          [&] {
            evaluate(
                {.target = w.run("a").string(), .overrides = {"eval.data=nowhere.txt"}, .fail_if = {}, .json = false},
                self);
          },
          Exit::data),
      "nowhere.txt");
}

TEST_CASE("plan and dry run write nothing") {
  const Workshop w;
  SelfCommunicator self;
  TrainOptions o = w.options("dry", {});
  o.dry_run = true;
  CHECK(pretrain(o, self) == Exit::ok);
  CHECK_FALSE(std::filesystem::exists(w.run("dry")));
  const Captured out;
  const Exit code = plan(
      {.config = o.config, .overrides = {"model.vocab_size=257"}, .world_size = 2, .peak_tflops = 1.0, .json = true});
  CHECK(code == Exit::ok);
  const Json p = Json::parse(out.text());
  CHECK(p["steps"] == 8);
  CHECK(p["accumulation"] == 2);
  // embedding 257 x 32; a layer: qkv 96 x 32, out 32 x 32, SwiGLU 3 x 128 x 32, two norms, scorer 2 x 32; the final
  // norm
  CHECK(p["parameters"] == 257 * 32 + 2 * (96 * 32 + 32 * 32 + 3 * 128 * 32 + 2 * 32 + 2 * 32) + 32);
  CHECK(p["sparsek_parameters"] == 2 * 2 * 32);
  REQUIRE(p["attention"].size() == 1);
  CHECK(p["attention"][0]["type"] == "sparsek");
  CHECK(p["attention"][0]["cached_rows"] == 16);
}
