// From an invocation to a running Trainer: what is opened, checked and restored, in which order.
#include <functional>
#include <iostream>
#include <new>
#include <optional>

#include "core/log.h"
#include "dist/die.h"
#include "dist/gpus.h"
#include "dist/watchdog.h"
#include "train/commands.h"
#include "train/compute.h"
#include "train/demo.h"
#include "train/freeze.h"
#include "train/idle_keys.h"
#include "train/manifest.h"
#include "train/on_root.h"
#include "train/peak.h"
#include "train/run_lock.h"
#include "train/trainer.h"

namespace sieve {
namespace {

// The model and tokenizer of a checkpoint as the lowest layer of a configuration.
struct BaseGroups {
  ModelConfig model;
  TokenizerGroup tokenizer;
  void fields(FieldVisitor& v) {
    v.group({"model", ""}, model);
    v.group({"tokenizer", ""}, tokenizer);
  }
};

std::string base_text(const Checkpoint& checkpoint) {
  BaseGroups base{checkpoint.config().model, checkpoint.config().tokenizer};
  if (base.tokenizer.type != TokenizerType::byte)
    base.tokenizer.path = checkpoint.archive().file("tokenizer.json").string();
  return dump_yaml(base);
}

struct Start {
  LoadedConfig loaded;
  RunFolder folder{""};
  RunLock lock;                        // on rank 0, until the run ends
  std::optional<Checkpoint> restored;  // this run goes on
  std::optional<Checkpoint> base;      // a new run takes its weights
};

Start open_configuration(const TrainOptions& options, const RunConfig& given, bool finetune, Communicator& comm) {
  if (finetune && !given.init_from.path)
    fail(Exit::config, "init_from.path", "finetune starts from a checkpoint: give init_from.path");
  if (!finetune && given.init_from.path)
    fail(Exit::config, "init_from.path", "pretrain starts from scratch: use sieve finetune");
  Start start;
  start.folder = RunFolder(given.run_dir());
  std::string from;
  if (!options.dry_run && !options.print_config)
    from = on_root(comm, "the checkpoint to continue from", [&] {
      start.folder.choose_checkpoint(options.resume);  // what is refused leaves no trace
      start.lock = RunLock(start.folder.root());
      return start.folder.choose_checkpoint(options.resume).string();  // the run before may just have ended
    });
  // Every rank reads and verifies what it restores: a damaged byte on one node is that node's error.
  on_every_rank(comm, "opening the checkpoint", [&] {
    if (!from.empty()) start.restored.emplace(from);
    if (from.empty() && finetune) start.base.emplace(resolve_checkpoint(*given.init_from.path));
  });
  const std::optional<Checkpoint>& origin = start.restored ? start.restored : start.base;
  const bool inherits = finetune && given.model.from_checkpoint.value_or(true);
  start.loaded = load_run_config(options.config, options.overrides, comm.size(), inherits ? base_text(*origin) : "",
                                 inherits ? "checkpoint " + origin->path().string() : "");
  return start;
}

void check_resume(const Start& start, const RunConfig& config, const RunData& data, const RunScale& scale,
                  Communicator& comm) {
  const Checkpoint& c = *start.restored;
  const auto changes = compare_for_resume(c.config(), config);
  if (comm.rank() == 0) {
    for (const auto& line : changes.warned) log_warn("continues with other bits: ", line);
  }
  std::string problems;
  for (const auto& line : changes.refused) problems += "\n  " + line;
  if (c.state().tokenizer_hash != data.tokenizer_hash)
    problems += "\n  tokenizer: another one than when the run started";
  if (c.state().data_hash != data.train_hash) problems += "\n  data.train: other shards than when the run started";
  if (!problems.empty())
    fail(Exit::config, "resume", "the configuration differs from that of ", c.path().string(), ":", problems,
         "\n  restore these keys, or start a new run from these weights: sieve finetune with init_from.path");
  if (c.state().step > scale.steps)
    fail(Exit::config, "resume", c.path().string(), " is at step ", c.state().step, ", beyond the ", scale.steps,
         " steps of this run");
}

std::unique_ptr<Decoder> build_model(const Start& start, const RunConfig& config, Communicator& comm) {
  const DType compute = compute_dtype(config);
  auto model =
      std::make_unique<Decoder>(config.model, DecoderOptions{.compute = compute,
                                                             .seed = static_cast<std::uint64_t>(config.run.seed),
                                                             .recompute = config.train.recompute});
  on_every_rank(comm, "loading weights", [&] {
    if (start.restored) load_weights(*start.restored, *model, true, {});
    if (!start.base) return;
    const WeightReport report = load_weights(*start.base, *model, config.init_from.strict, config.init_from.allow_new);
    if (comm.rank() != 0) return;
    log_info("init   ", start.base->path().string(), ": ", report.summary());
    for (const auto& name : report.fresh) log_info("  new     ", name);
    for (const auto& name : report.unexpected) log_info("  unused  ", name);
  });
  freeze_matching(*model, config.train.freeze, start.loaded.tree, "train.freeze");
  const Stream stream = compute_stream(config.device.type, comm.local_rank());
  connect_gpus(comm, stream.device, config.parallel.timeout);
  set_gpu_determinism(*config.run.deterministic);
  place_parameters(model->parameters(), stream);
  return model;
}

void prepare_folder(const Start& start, const TrainOptions& options, const TrainState& first, const RunScale& scale,
                    const std::string& yaml, const Json& manifest, Communicator& comm) {
  on_root(comm, "the run folder", [&] {
    start.folder.create(start.loaded.tree, options.argv, first.step);
    start.folder.write_config(yaml);
    start.folder.write_manifest(manifest);
    if (start.restored) {
      for (const auto& name : start.folder.set_aside_after(first.step))
        log_warn("checkpoint ", name, " is of a later step: moved to checkpoints/superseded/");
    }
    StatusFile(start.folder.status_file(), 0)
        .write({"running", first.step, scale.steps, first.tokens, first.loss, -1, ""});
    return std::string();
  });
  open_log_file(start.folder.log_file(comm.rank()).string());
}

void print_result(const RunFolder& folder, const TrainState& state, Exit code) {
  const auto number = [](const std::optional<double>& v) { return v ? Json(*v) : Json(nullptr); };
  const Json result{{"run", folder.root().string()},
                    {"exit_code", static_cast<int>(code)},
                    {"step", state.step},
                    {"tokens", state.tokens},
                    {"loss", state.loss},
                    {"val_loss", number(state.val_loss)},
                    {"best_val_loss", number(state.best_val_loss)},
                    {"seconds", state.seconds},
                    {"skipped_steps", state.skipped}};
  std::cout << json_text(result) << '\n';
}

// Runs `work`, and leaves a last word in status.json if that fails. `state`: what is known by then.
Exit with_last_word(const RunFolder& folder, const std::function<TrainState()>& state, Communicator& comm,
                    const std::function<Exit()>& work) {
  const auto failed = [&](Exit code, const char* message) {
    if (comm.rank() != 0) return;
    const TrainState s = state();
    try {
      StatusFile(folder.status_file(), 0)
          .write({"failed", s.step, 0, s.tokens, s.loss, static_cast<int>(code), message});
    } catch (const Error& e) {
      log_error(e.what());  // the disk may be what failed
    }
  };
  try {
    return work();
  } catch (const Error& e) {
    failed(e.code(), e.what());
    throw;
  } catch (const std::bad_alloc&) {
    failed(Exit::memory, "out of memory");
    throw;
  } catch (const std::exception& e) {
    failed(Exit::internal, e.what());
    throw;
  }
}

// The watchdog's way to end a rank: rank 0 first says so in status.json.
Watchdog::Expired last_word_and_die(const RunFolder& folder, int rank) {
  return [file = folder.status_file(), rank](Exit code, const std::string& reason) {
    if (rank == 0) leave_status_failed(file, code, reason);
    die(code, reason);
  };
}

// Runs `work`; where memory ends, says what the plan holds and what would shrink it.
Exit with_memory_help(const RunConfig& config, const RunPlan& plan, const std::function<Exit()>& work) {
  const auto help = [&] {
    for (const auto& line : memory_help(config, plan)) log_error(line);
  };
  try {
    return work();
  } catch (const Error& e) {
    if (e.code() == Exit::memory) help();
    throw;
  } catch (const std::bad_alloc&) {
    help();
    throw Error(Exit::memory, "out of memory");
  }
}

void say_plan(const RunConfig& config, const RunPlan& plan) {
  log_info(plan_line(plan));
  if (plan.memory.total() <= physical_memory(config)) return;
  log_warn("the plan wants more memory than there is");
  for (const auto& line : memory_help(config, plan)) log_warn(line);
}

// The validation losses that a restored state carries count only while the validation set stays the same.
void settle_validation(TrainState& state, const std::string& val_set, bool restored, Communicator& comm) {
  if (restored && state.val_set != val_set) {
    state.val_loss.reset();
    if (comm.rank() == 0 && state.best_val_loss)
      log_warn("the validation set is another one (data.val, eval.tokens): the best validation loss starts anew");
    state.best_val_loss.reset();
  }
  state.val_set = val_set;
}

Exit train_in_folder(const TrainOptions& options, const Start& start, const RunConfig& config, const std::string& yaml,
                     const RunData& data, const RunScale& scale, const RunPlan& plan, Communicator& comm) {
  TrainerSetup setup{.config = config,
                     .config_yaml = yaml,
                     .data = data,
                     .scale = scale,
                     .model = build_model(start, config, comm),
                     .state = {},
                     .restored = nullptr,
                     .folder = start.folder,
                     .progress = options.progress};
  if (start.restored) {
    setup.state = start.restored->state();
    setup.restored = &*start.restored;
  }
  setup.state.config_hash = resume_hash(config);
  setup.state.tokenizer_hash = data.tokenizer_hash;
  setup.state.data_hash = data.train_hash;
  settle_validation(setup.state, data.val ? cat(data.val_hash, "/", config.eval.tokens.value_or(0)) : "",
                    start.restored.has_value(), comm);
  const TrainState first = setup.state;
  const Json manifest =
      run_manifest(config, data, plan, start.restored ? start.restored->path() : std::filesystem::path(), comm);
  std::optional<Trainer> trainer;
  const auto state = [&] { return trainer ? trainer->state() : first; };
  const Exit code = with_last_word(start.folder, state, comm, [&] {
    prepare_folder(start, options, first, scale, yaml, manifest, comm);
    if (comm.rank() == 0)
      log_info("run    ", start.folder.root().string(), first.step > 0 ? cat(", continuing at step ", first.step) : "");
    trainer.emplace(std::move(setup), comm);
    return trainer->run();
  });
  if (options.json && comm.rank() == 0) print_result(start.folder, state(), code);
  return code;
}

// The built-in demo's text is made first where it is not there yet, but not by a dry run, which writes nothing: then
// train stays null, and the plan goes without.
RunData open_text(const TrainOptions& options, const RunConfig& config, const ConfigTree& tree, Communicator& comm) {
  RunData data;
  const bool demo = tree.origin_of("data.train").source == kDemoName;
  const bool dry = options.dry_run || options.print_config;
  if (demo && !dry) {
    on_root(comm, "preparing the demo text", [] {
      prepare_demo_data();
      return std::string();
    });
  }
  on_every_rank(comm, "opening the data", [&] {
    if (!demo || !dry || demo_data_exists()) {
      data = open_run_data(config, tree);
      return;
    }
    if (config.train.epochs)
      tree.fail_at("train.epochs", "needs the demo's text, which a run makes and a dry run does not; give train.steps");
    data.tokenizer = open_run_tokenizer(config, tree);
  });
  if (!data.train && comm.rank() == 0) log_info("demo   no text yet: a run makes it from the headers of this machine");
  return data;
}

Exit start_training(const TrainOptions& options, bool finetune, Communicator& comm) {
  const RunConfig given = bind_run_config(options.config, options.overrides, finetune ? "schema: 1" : "").config;
  const Watchdog watchdog(comm.progress(), comm.rank(), given.parallel.timeout,
                          last_word_and_die(RunFolder(given.run_dir()), comm.rank()));
  Start start = open_configuration(options, given, finetune, comm);
  RunConfig config = start.loaded.config;
  if (comm.rank() == 0) warn_of_idle_keys(config, start.loaded.tree);
  const RunData data = open_text(options, config, start.loaded.tree, comm);
  resolve_config(config, data.tokenizer->vocab_size(), comm.size());
  resolve_device(config.device.type);  // asked for and not there: said before anything is opened on it
  const std::string yaml = dump_yaml(config, start.loaded.tree);
  if (options.print_config) {
    if (comm.rank() == 0) std::cout << yaml;
    return Exit::ok;
  }
  const RunScale scale = scale_of(config, comm.size(), data.train ? data.train->sampler().epoch_samples() : 0);
  if (start.restored) check_resume(start, config, data, scale, comm);

  const Stream stream = compute_stream(config.device.type, comm.local_rank());
  if (!config.log.peak_tflops) config.log.peak_tflops = measure_peak_tflops(compute_dtype(config), stream);
  const RunPlan plan = make_plan(config, scale, comm.size(), *config.log.peak_tflops);
  if (comm.rank() == 0) say_plan(config, plan);
  if (options.dry_run) return Exit::ok;
  return with_memory_help(config, plan,
                          [&] { return train_in_folder(options, start, config, yaml, data, scale, plan, comm); });
}

}  // namespace

Exit pretrain(const TrainOptions& options, Communicator& comm) { return start_training(options, false, comm); }
Exit finetune(const TrainOptions& options, Communicator& comm) { return start_training(options, true, comm); }

}  // namespace sieve
