#include "train/checkpoint.h"

#include <atomic>
#include <fstream>
#include <thread>

#include "io/yaml.h"
#include "support/catch.h"
#include "support/compare.h"
#include "support/scratch.h"
#include "train/checkpoint_writer.h"
#include "train/run_data.h"
#include "train/run_folder.h"

using namespace sieve;
using sieve::test::same_bits;
using sieve::test::Scratch;
using sieve::test::text_of;

namespace {

RunConfig small_config() {
  RunConfig c;
  c.model.n_layers = 2;
  c.model.d_model = 16;
  c.model.n_heads = 2;
  c.model.attention.kinds["sk"] = {.type = AttentionKind::sparsek, .window = 4, .k = 4};
  c.model.attention.pattern = {"sk"};
  c.data.seq_len = 32;
  c.train.steps = 10;
  resolve_config(c, 257, 1);
  return c;
}

// A model, its optimizer and what is needed to save them.
struct Fixture {
  RunConfig config = small_config();
  Decoder model{config.model, {.compute = DType::f32, .seed = 3, .recompute = {}}};
  AdamW adamw{config.train.optimizer, model.parameters()};
  Scratch scratch;
  std::filesystem::path folder = scratch / "checkpoints";

  void change(std::uint64_t seed) {
    std::vector<Tensor> grads;
    for (const auto& p : model.parameters())
      grads.push_back(random_normal(p->master.shape(), 0, 1, seed, grads.size()));
    adamw.step(grads, 1e-2, 1.0);
  }
  CheckpointContent content(std::int64_t step, std::optional<double> val = {}) const {
    CheckpointContent c;
    c.state.step = step;
    c.state.updates = step;
    c.state.tokens = step * 100;
    c.state.seconds = 1.5;
    c.state.val_loss = val;
    c.state.config_hash = resume_hash(config);
    c.config_yaml = dump_yaml(config);
    c.config_json = model_json(config.model);
    c.tokenizer = make_byte_tokenizer();
    collect_weights(model, c.model, c.scorers);
    c.optimizer = adamw.state();
    return c;
  }
  std::vector<std::string> present() const { return list_archives(folder); }
};

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) { return e.what(); }
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

TEST_CASE("a checkpoint gives back every bit") {
  Fixture f;
  for (int i = 0; i < 3; ++i) f.change(static_cast<std::uint64_t>(i));
  write_checkpoint(f.folder, f.content(3, 2.25));
  const Checkpoint checkpoint(f.folder / "step_00000003");
  CHECK(checkpoint.state().step == 3);
  CHECK(checkpoint.state().tokens == 300);
  CHECK(checkpoint.state().val_loss == 2.25);
  CHECK_FALSE(checkpoint.state().best_val_loss.has_value());
  CHECK(flatten_config(checkpoint.config()) == flatten_config(f.config));
  CHECK(checkpoint.tokenizer()->hash() == make_byte_tokenizer()->hash());
  CHECK(read_safetensors(checkpoint.archive().file("sparsek.safetensors")).size() == 2);
  CHECK(read_safetensors(checkpoint.archive().file("model.safetensors")).count("layers.0.attn.sparsek.score.weight") ==
        0);

  Decoder other(f.config.model, {.compute = DType::bf16, .seed = 99, .recompute = {}});
  const WeightReport report = load_weights(checkpoint, other, true, {});
  CHECK(report.mapped.size() == f.model.parameters().size());
  AdamW adamw(f.config.train.optimizer, other.parameters());
  adamw.restore(SafetensorsFile(checkpoint.archive().file("optimizer.safetensors")), checkpoint.state().updates);
  CHECK(adamw.updates() == 3);
  for (std::size_t i = 0; i < other.parameters().size(); ++i) {
    const Parameter& p = *other.parameters()[i];
    CHECK(same_bits(p.master, f.model.parameters()[i]->master));
    if (!p.scorer) CHECK(same_bits(p.value.value(), p.master.to(DType::bf16)));
  }
  const auto mine = f.adamw.state();
  for (const auto& [name, tensor] : adamw.state()) CHECK(same_bits(tensor, mine.at(name)));

  const LoadedModel loaded = load_model(f.folder);
  CHECK(loaded.state.step == 3);
  CHECK(same_bits(loaded.model->parameters()[0]->master, f.model.parameters()[0]->master));
}

TEST_CASE("a damaged checkpoint is named and refused, and the last good one offered") {
  Fixture f;
  write_checkpoint(f.folder, f.content(4));
  write_checkpoint(f.folder, f.content(8));
  for (const char* name : {"model.safetensors", "sparsek.safetensors", "optimizer.safetensors", "state.json",
                           "config.yaml", "tokenizer.json"}) {
    const auto path = f.folder / "step_00000008" / name;
    const std::string good = text_of(path);
    std::string bad = good;
    bad[bad.size() / 2] = static_cast<char>(bad[bad.size() / 2] ^ 4);
    std::ofstream(path, std::ios::binary) << bad;
    const std::string message = error_of([&] { Checkpoint(f.folder / "step_00000008"); });
    has(message, "step_00000008");
    has(message, name);
    has(message, "last good checkpoint: " + (f.folder / "step_00000004").string());
    std::ofstream(path, std::ios::binary) << good.substr(0, good.size() - 1);
    has(error_of([&] { Checkpoint(f.folder / "step_00000008"); }), name);
    std::ofstream(path, std::ios::binary) << good;
  }
  CHECK_NOTHROW(Checkpoint(f.folder / "step_00000008"));
  has(error_of([&] { resolve_checkpoint(f.scratch / "nowhere"); }), "does not exist");
  has(error_of([&] { resolve_checkpoint(f.scratch.path() + "/checkpoints/step_00000008/state.json"); }),
      "holds no checkpoint of sieve");
}

TEST_CASE("weights that do not fit are all listed") {
  Fixture f;
  write_checkpoint(f.folder, f.content(1));
  const Checkpoint checkpoint(f.folder / "step_00000001");
  ModelConfig dense = f.config.model;
  dense.attention.kinds["full"] = {};
  dense.attention.pattern = {"full"};
  dense.resolve(257, 32);
  const Decoder without(dense, {});
  has(error_of([&] { load_weights(checkpoint, without, true, {}); }),
      "not in the model (init_from.strict: false leaves them out): layers.0.attn.sparsek");
  const WeightReport loose = load_weights(checkpoint, without, false, {});
  CHECK(loose.unexpected.size() == 2);
  CHECK(loose.summary() == cat(without.parameters().size(), " weights loaded, 0 new, 2 unused"));

  // The other way round: a dense checkpoint under a model with scorers.
  CheckpointContent content = f.content(2);
  content.scorers.clear();
  write_checkpoint(f.folder, content);
  const Checkpoint plain(f.folder / "step_00000002");
  CHECK_FALSE(plain.archive().has("sparsek.safetensors"));
  const Decoder with(f.config.model, {.compute = DType::f32, .seed = 9, .recompute = {}});
  has(error_of([&] { load_weights(plain, with, true, {}); }),
      "not in the checkpoint (init_from.allow_new may name them): layers.0.attn.sparsek.score.weight, "
      "layers.1.attn.sparsek.score.weight");
  CHECK(load_weights(plain, with, true, {"*.sparsek.*"}).fresh.size() == 2);

  ModelConfig wider = f.config.model;
  wider.d_ff = *wider.d_ff + 64;
  const Decoder wide(wider, {});
  const std::string message = error_of([&] { load_weights(checkpoint, wide, true, {}); });
  has(message, "of another shape: ");
  has(message, "layers.0.mlp.up.weight (128, 16) in the checkpoint, (256, 16) in the model");
}

TEST_CASE("pruning keeps the last, the milestones and the best") {
  Fixture f;
  const PruneRules rules{.keep_last = 2, .keep_every = 40, .keep_best = 1};
  const double loss[] = {5, 3, 4, 4.5, 4.2, 3};
  for (int i = 0; i < 6; ++i) {
    write_checkpoint(f.folder, f.content((i + 1) * 10, loss[i]));
    prune_checkpoints(f.folder, rules);
    CHECK(read_archive_link(f.folder, "latest") == checkpoint_name((i + 1) * 10));
  }
  CHECK(f.present() == std::vector<std::string>{"step_00000020", "step_00000040", "step_00000050", "step_00000060"});
  CHECK(read_archive_link(f.folder, "best") == "step_00000020");  // of equals the first
  CHECK(resolve_checkpoint(f.folder).filename() == "best");
  CHECK(newest_checkpoint(f.folder).filename() == "step_00000060");
  // No rule keeps the best one: the link names the best of those that stay.
  prune_checkpoints(f.folder, {.keep_last = 2, .keep_every = 0, .keep_best = 0});
  CHECK(f.present() == std::vector<std::string>{"step_00000050", "step_00000060"});
  CHECK(read_archive_link(f.folder, "best") == "step_00000060");
  // Checkpoints that were never validated have no best one.
  write_checkpoint(f.folder, f.content(70));
  write_checkpoint(f.folder, f.content(80));
  prune_checkpoints(f.folder, {.keep_last = 1, .keep_every = 0, .keep_best = 3});
  CHECK(f.present().size() == 3);
}

TEST_CASE("later checkpoints of an abandoned continuation are set aside") {
  Fixture f;
  for (int step : {1, 2, 3}) write_checkpoint(f.folder, f.content(step));
  const RunFolder folder(f.scratch.path());
  CHECK(folder.set_aside_after(1) == std::vector<std::string>{"step_00000002", "step_00000003"});
  CHECK(newest_checkpoint(f.folder).filename() == "step_00000001");
  CHECK(std::filesystem::exists(f.folder / "superseded/step_00000003" / "manifest.json"));
  CHECK(folder.choose_checkpoint("auto") == f.folder / "step_00000001");
  CHECK(folder.choose_checkpoint((f.folder / "superseded/step_00000003").string()).filename() == "step_00000003");
}

TEST_CASE("the background writer saves what was there when it was asked") {
  Fixture f;
  std::vector<Tensor> before;
  {
    CheckpointWriter writer(f.folder, {.keep_last = 2}, true);
    for (int step = 1; step <= 5; ++step) {
      f.change(static_cast<std::uint64_t>(step));
      writer.save(f.content(step));
      if (step == 5) {
        for (const auto& p : f.model.parameters()) before.push_back(p->master.clone());
      }
      f.change(100);  // training goes on while the thread writes
    }
    writer.wait();
    const auto lines = writer.poll();
    REQUIRE(lines.size() == 5);
    has(lines[4], "saved ");
    has(lines[4], "step_00000005");
    CHECK(writer.poll().empty());
  }
  CHECK(f.present() == std::vector<std::string>{"step_00000004", "step_00000005"});
  const LoadedModel loaded = load_model(f.folder);
  for (std::size_t i = 0; i < before.size(); ++i) CHECK(same_bits(loaded.model->parameters()[i]->master, before[i]));
}

TEST_CASE("weights that change before the writer's thread gets to them are saved as they were") {
  Fixture f;
  f.change(1);
  const Tensor weight = f.model.parameters()[0]->master.clone(), moment = f.adamw.state().begin()->second.clone();
  const std::string name = f.model.parameters()[0]->name, moment_name = f.adamw.state().begin()->first;
  std::atomic<bool> changed{false};
  set_archive_fault_hook([&changed](ArchiveStage stage, const std::filesystem::path&) {
    while (stage == ArchiveStage::begin && !changed) std::this_thread::yield();
  });
  {
    CheckpointWriter writer(f.folder, {}, true);
    writer.save(f.content(1));
    f.change(2);
    changed = true;
    writer.wait();
  }
  set_archive_fault_hook({});
  const Checkpoint saved(f.folder / "step_00000001");
  CHECK(same_bits(SafetensorsFile(saved.archive().file("model.safetensors")).read(name), weight));
  CHECK(same_bits(SafetensorsFile(saved.archive().file("optimizer.safetensors")).read(moment_name), moment));
  CHECK_FALSE(same_bits(f.model.parameters()[0]->master, weight));
}

TEST_CASE("a save that fails leaves the old checkpoint and says so") {
  for (const bool background : {false, true}) {
    Fixture f;
    CheckpointWriter writer(f.folder, {}, background);
    writer.save(f.content(1));
    writer.wait();
    set_archive_fault_hook([](ArchiveStage stage, const std::filesystem::path& path) {
      if (stage == ArchiveStage::file_synced && path.filename() == "optimizer.safetensors")
        fail(Exit::data, "disk", "No space left on device");
    });
    const std::string message = error_of([&] {
      writer.save(f.content(2));
      writer.wait();
    });
    set_archive_fault_hook({});
    has(message, "No space left on device");
    CHECK(f.present() == std::vector<std::string>{"step_00000001"});
    CHECK(read_archive_link(f.folder, "latest") == "step_00000001");
    CHECK_NOTHROW(Checkpoint(f.folder / "latest"));
    writer.save(f.content(3));  // and the writer still works
    writer.wait();
    CHECK(newest_checkpoint(f.folder).filename() == "step_00000003");
    CHECK(clean_stale_archives(f.folder) == 0);
  }
}

TEST_CASE("what may change when a run goes on, and what may not") {
  const RunConfig saved = small_config();
  const auto changed = [&](const std::function<void(RunConfig&)>& change) {
    RunConfig now = saved;
    change(now);
    return compare_for_resume(saved, now);
  };
  CHECK(changed([](RunConfig&) {}).refused.empty());
  const auto free = changed([](RunConfig& c) {
    c.train.steps = 20;
    c.run.max_time = 60;
    c.run.dir = "elsewhere";
    c.log.every = 1;
    c.checkpoint.keep_last = 9;
    c.eval.every = 7;
    c.sample.prompts = {"a", "b"};
    c.parallel.bucket = 1;
    c.data.val = {"x"};
  });
  CHECK(free.refused.empty());
  CHECK(free.warned.empty());
  const auto lr = changed([](RunConfig& c) { c.train.optimizer.lr = 0.5; });
  REQUIRE(lr.refused.size() == 1);
  CHECK(lr.refused[0] == "train.optimizer.lr: 0.001 in the checkpoint, 0.5 now");
  CHECK(changed([](RunConfig& c) { c.model.attention.kinds["sk"].k = 5; })
            .refused[0]
            .find("model.attention.kinds.sk.k: 4") == 0);
  CHECK(changed([](RunConfig& c) { c.data.shuffle.seed = 5; }).refused.size() == 1);
  CHECK(changed([](RunConfig& c) { c.train.freeze = {"*"}; }).refused.size() == 1);
  CHECK(changed([](RunConfig& c) { c.model.attention.kinds["extra"] = {}; }).refused.size() > 3);
  const auto micro = changed([](RunConfig& c) { c.train.micro_batch = 3; });
  CHECK(micro.refused.empty());
  CHECK(micro.warned.size() == 1);
  RunConfig now = saved;
  now.log.every = 3;
  CHECK(resume_hash(now) == resume_hash(saved));
  now.train.grad_clip = 3;
  CHECK(resume_hash(now) != resume_hash(saved));
}

TEST_CASE("state.json is checked") {
  TrainState s;
  s.step = 5;
  s.updates = 4;
  s.skipped = 1;
  s.loss = std::nan("");
  s.best_val_loss = 0.1;
  const TrainState back = parse_state(state_text(s), "state.json");
  CHECK(back.step == 5);
  CHECK(back.loss == 0);  // of a skipped step: there is no number
  CHECK(back.best_val_loss == 0.1);
  s.updates = 6;
  has(error_of([&] { parse_state(state_text(s), "state.json"); }), "5 steps are not 6 updates and 1 skipped ones");
  has(error_of([&] { parse_state("{}", "state.json"); }), "state.json");
  has(error_of([&] { parse_state("{\"format\": 2}", "state.json"); }), "newer than this program");
  CHECK(step_of_checkpoint("step_00000012") == 12);
  CHECK(step_of_checkpoint("step_123456789") == 123456789);
  for (const char* bad : {"step_12", "step_0000001x", "latest", "superseded", "step_-0000001"})
    CHECK_FALSE(step_of_checkpoint(bad).has_value());
}
