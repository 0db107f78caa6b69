// `sieve eval`: checkpoints x data x protocols x contexts, one table, one JSON report, thresholds.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>

#include "core/log.h"
#include "dist/gpus.h"
#include "dist/watchdog.h"
#include "io/json.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/compute.h"
#include "train/eval_config.h"
#include "train/eval_report.h"
#include "train/eval_text.h"
#include "train/expression.h"
#include "train/idle_keys.h"
#include "train/load_config.h"
#include "train/on_root.h"
#include "train/probe_config.h"

namespace sieve {

namespace {

// A run's checkpoints are called after the run.
std::string model_name(const LoadedModel& model) { return model.config.run.name; }

// A key of the settings as messages call it.
std::string key_of(const NamedEvalSettings& settings, const char* key) {
  return settings.name.empty() ? cat("eval.", key) : cat("eval.protocols: ", settings.name, ": ", key);
}

EvalProtocol protocol_of(const NamedEvalSettings& settings, std::int64_t context) {
  EvalProtocol p;
  p.method = settings.method;
  p.context = context;
  const double stride = settings.stride;
  p.stride = std::llround(stride < 1 ? stride * static_cast<double>(context) : stride);
  if (settings.method == EvalMethod::sliding && (p.stride < 1 || p.stride > context))
    fail(Exit::config, key_of(settings, "stride"), stride, " is ", p.stride,
         " tokens; it must lie between 1 and the context, ", context);
  p.stride = std::clamp<std::int64_t>(p.stride, 1, context);
  p.score_from = settings.score_from;
  p.per_document = settings.per_document;
  p.tail = settings.tail;
  p.span = settings.span;
  p.rows = settings.batch;
  p.position_scale = settings.position_scale;
  p.position_buckets = settings.position_buckets;
  p.recall = settings.recall;
  p.max_tokens = settings.max_tokens.value_or(0);
  return p;
}

void check_context(const LoadedModel& model, const NamedEvalSettings& settings, std::int64_t context) {
  const ModelConfig& c = model.config.model;
  if (c.arch == Arch::gpt2 && context > *c.max_seq)
    fail(Exit::config, key_of(settings, "contexts"), context, " is longer than the ", *c.max_seq,
         " learned positions of ", model.path.string());
}

struct NamedProtocol {
  std::string name;
  EvalProtocol protocol;
};

// One protocol a context. The windows of a tail shrink with its context: more of them make a forward of as many tokens.
void add_protocols(const NamedEvalSettings& settings, const LoadedModel& model, std::vector<NamedProtocol>& protocols) {
  std::vector<std::int64_t> contexts = settings.contexts;
  const bool tail = settings.method == EvalMethod::tail;
  if (contexts.empty() && tail) contexts = tail_contexts(settings);
  if (contexts.empty()) contexts.push_back(model.config.data.seq_len);
  const std::int64_t longest = *std::max_element(contexts.begin(), contexts.end());
  for (const std::int64_t context : contexts) {
    check_context(model, settings, context);
    protocols.push_back({settings.name, protocol_of(settings, context)});
    if (tail) protocols.back().protocol.rows *= longest / context;
  }
}

std::vector<EvalDataConfig> sources_of(const EvalRunGroup& eval, const LoadedModel& model) {
  if (!eval.data.empty()) return eval.data;
  if (model.config.data.val.empty())
    fail(Exit::config, "eval.data", "names nothing, and ", model.path.string(),
         " was trained without a validation set");
  return {{.name = "val", .path = "", .document_separator = {}, .field = "text"}};
}

// A text that a protocol finds nothing in is told of before the work, not after a part of it.
void check_text(const TokenSource& text, const std::string& data, const std::vector<NamedProtocol>& protocols) {
  std::vector<std::int64_t> starts;
  text.document_starts(0, text.tokens(), starts);
  for (const NamedProtocol& p : protocols) {
    try {
      eval_windows(p.protocol, text.tokens(), starts);
    } catch (const Error& error) {
      if (p.name.empty()) throw;
      throw Error(error.code(), cat(error.what(), "\n  protocol ", p.name, ", data ", data));
    }
  }
}

std::vector<EvalResult> evaluate_model(const std::string& checkpoint, const EvalRunGroup& eval, DeviceType device,
                                       Communicator& comm, EvalTexts& texts,
                                       std::vector<std::filesystem::path>& paths) {
  LoadedModel model;
  on_every_rank(comm, "loading a checkpoint", [&] {
    model = load_model(checkpoint);
    place_parameters(model.model->parameters(), compute_stream(device, comm.local_rank()));
  });
  paths.push_back(model.path);
  const auto sources = sources_of(eval, model);
  std::vector<NamedProtocol> protocols;
  for (const auto& settings : eval.evaluations()) add_protocols(settings, model, protocols);
  std::vector<const EvalText*> opened;
  on_every_rank(comm, "opening the text", [&] {
    for (const auto& data : sources) {
      opened.push_back(&texts.open(data, model.config.data.val, *model.tokenizer));
      check_text(*opened.back()->tokens, eval_data_name(data), protocols);
    }
  });
  std::vector<EvalResult> results;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const auto files = std::make_shared<const std::vector<std::string>>(opened[i]->files);
    for (const auto& [name, protocol] : protocols) {
      EvalResult result{model_name(model), eval_data_name(sources[i]), protocol, {}, files, name};
      result.value = evaluate_perplexity(*model.model, *opened[i]->tokens, *model.tokenizer, protocol,
                                         model.config.model.attention.document_mask, comm);
      results.push_back(std::move(result));
    }
  }
  return results;
}

// The run folder that a checkpoint lies in, or "".
std::filesystem::path run_of(const std::filesystem::path& checkpoint) {
  const auto checkpoints = checkpoint.parent_path();
  return checkpoints.filename() == "checkpoints" && std::filesystem::exists(checkpoints.parent_path() / "config.yaml")
             ? checkpoints.parent_path()
             : std::filesystem::path();
}

void write_reports(const EvalRunGroup& eval, const std::vector<EvalResult>& results,
                   const std::vector<std::filesystem::path>& paths, std::size_t per_model) {
  if (eval.out) {
    Json report{{"results", Json::array()}};
    for (const auto& r : results) report["results"].push_back(result_json(r));
    if (const auto folder = std::filesystem::path(*eval.out).parent_path(); !folder.empty()) make_directories(folder);
    write_json(*eval.out, report);
    return;
  }
  for (std::size_t i = 0; i < results.size(); ++i) {
    const auto run = run_of(paths[i / per_model]);
    if (run.empty()) continue;
    make_directories(run / "eval");
    Json json = result_json(results[i]);
    json["checkpoint"] = paths[i / per_model].string();
    write_json(run / "eval" / results[i].file_name(), json);
  }
}

// Would this setting alone be a valid configuration of this schema?
template <class Schema>
bool fits(const std::pair<std::string, std::string>& variable) {
  try {
    ConfigTree tree;
    tree.overlay_environment(std::span(&variable, 1));
    Schema schema;
    tree.bind(schema);
    return true;
  } catch (const Error&) { return false; }
}

// An environment made for a training run (SIEVE_train__steps, SIEVE_eval__every) is no mistake of an evaluation.
std::vector<std::pair<std::string, std::string>> eval_environment() {
  std::vector<std::pair<std::string, std::string>> variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::size_t equals = text.find('=');
    if (text.substr(0, 6) != "SIEVE_" || equals == std::string_view::npos) continue;
    std::pair<std::string, std::string> variable{text.substr(0, equals), text.substr(equals + 1)};
    if (fits<EvalFile>(variable) || !fits<RunConfig>(variable)) variables.push_back(std::move(variable));
  }
  std::sort(variables.begin(), variables.end());
  return variables;
}

EvalRunGroup load_eval(const EvalOptions& options) {
  ConfigTree tree;
  const bool is_file = std::filesystem::is_regular_file(options.target);
  if (is_file) tree.load(options.target);
  tree.overlay_environment(eval_environment());
  tree.overlay(options.overrides);
  EvalFile file;
  tree.bind(file);
  if (!is_file) file.eval.checkpoints.insert(file.eval.checkpoints.begin(), options.target);
  resolve_eval(file.eval, tree);
  file.eval.fail_if.insert(file.eval.fail_if.end(), options.fail_if.begin(), options.fail_if.end());
  // A malformed expression or an unknown metric is found before the work, not after it.
  for (const auto& expression : file.eval.fail_if) {
    evaluate_comparison(expression, [](const std::string& name) {
      check_metric_name(name);
      return 0.0;
    });
  }
  return file.eval;
}

}  // namespace

Exit evaluate(const EvalOptions& options, Communicator& comm) {
  const EvalRunGroup eval = load_eval(options);
  const DeviceType device = resolve_device(device_from_name(options.device));
  constexpr double kTimeout = 600;  // seconds
  std::optional<Watchdog> watchdog;
  if (comm.size() > 1) watchdog.emplace(comm.progress(), comm.rank(), kTimeout);
  check_own_gpus(comm, compute_stream(device, comm.local_rank()).device);
  std::vector<EvalResult> results;
  std::vector<std::filesystem::path> paths;
  EvalTexts texts;
  for (const auto& checkpoint : eval.checkpoints) {
    for (auto& result : evaluate_model(checkpoint, eval, device, comm, texts, paths))
      results.push_back(std::move(result));
  }
  if (comm.rank() == 0) {
    write_reports(eval, results, paths, results.size() / paths.size());
    Json report{{"results", Json::array()}};
    for (const auto& r : results) {
      if (!options.json) std::cout << result_text(r, results.size() > 1) << '\n';
      report["results"].push_back(result_json(r));
    }
    if (options.json) std::cout << json_text(report) << '\n';
    std::cout.flush();
  }
  Exit code = Exit::ok;
  for (const auto& expression : eval.fail_if) {
    bool finite = true;
    const bool failed = evaluate_comparison(expression, [&](const std::string& name) {
      const double value = named_metric(name, results);
      finite = finite && std::isfinite(value);
      return value;
    });
    // Every comparison with NaN is false: it must not pass for a model that is good enough.
    if (!failed && finite) continue;
    if (comm.rank() == 0) log_error("fail-if: ", expression, finite ? "" : " (a metric is not finite)");
    code = Exit::threshold;
  }
  return code;
}

void check_config(const std::string& config, const std::vector<std::string>& overrides, int world_size) {
  // A file with a probe group is one for `sieve probe`, one with eval.checkpoints or such for `sieve eval`; the
  // training's schema has an eval group too.
  ConfigTree tree;
  if (!config.empty()) tree.load(config);
  if (tree.given("probe")) {
    load_probe(config, overrides, world_size);
    return;
  }
  if (!tree.given("eval.checkpoints") && !tree.given("eval.data") && !tree.given("eval.protocols")) {
    const LoadedConfig loaded = load_run_config(config, overrides, world_size);
    warn_of_idle_keys(loaded.config, loaded.tree);
    return;
  }
  load_eval({.target = config, .overrides = overrides, .fail_if = {}, .json = false});
}

}  // namespace sieve
