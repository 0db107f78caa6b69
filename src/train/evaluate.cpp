// `sieve eval`: checkpoints x data x contexts, one table, one JSON report, thresholds.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>

#include "core/log.h"
#include "data/prepare.h"
#include "data/token_store.h"
#include "dist/gpus.h"
#include "dist/watchdog.h"
#include "io/json.h"
#include "io/text_input.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/compute.h"
#include "train/eval_config.h"
#include "train/expression.h"
#include "train/format.h"
#include "train/idle_keys.h"
#include "train/load_config.h"
#include "train/on_root.h"

namespace sieve {

namespace {

struct Result {
  std::string model, data;
  EvalProtocol protocol;
  Perplexity value;

  std::string protocol_text() const {
    std::string text = cat(kEvalMethodNames[static_cast<std::size_t>(protocol.method)], ", ctx ", protocol.context);
    if (protocol.method == EvalMethod::sliding) text += cat(", stride ", protocol.stride);
    if (protocol.method == EvalMethod::chunked && protocol.score_from > 0)
      text += cat(", score_from ", protocol.score_from);
    return text + ", eos-joined";
  }
};

bool is_shards(const std::string& path) {
  const auto ends = [](const std::string& s) { return s.size() >= 3 && s.compare(s.size() - 3, 3, ".h5") == 0; };
  if (ends(path)) return true;
  if (!std::filesystem::is_directory(path)) return false;
  return std::any_of(std::filesystem::directory_iterator(path), std::filesystem::directory_iterator(),
                     [&](const auto& entry) { return ends(entry.path().filename().string()); });
}

// Documents of a text: each ends with the separator token, as in shards.
class TextTokens {
 public:
  TextTokens(const Tokenizer& tokenizer, const EvalDataConfig& config) : tokenizer_(tokenizer), config_(config) {}

  std::shared_ptr<const TokenSource> read() {
    std::string document;
    read_texts({config_.path}, config_.field, [&](const TextPiece& piece) {
      document += piece.text;
      if (!piece.last) return;
      split(document);
      document.clear();
    });
    if (tokens_.size() < 2) fail(Exit::data, "eval.data", config_.path, " is empty: nothing to evaluate");
    return std::make_shared<MemoryTokens>(config_.path, std::move(tokens_), std::move(starts_));
  }

 private:
  void split(std::string_view text) {
    if (!config_.document_separator || config_.document_separator->empty()) return add(text);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t next = std::min(text.size(), text.find(*config_.document_separator, at + 1));
      add(text.substr(at, next - at));
      at = next;
    }
  }
  void add(std::string_view document) {
    if (document.empty()) return;
    starts_.push_back(static_cast<std::int64_t>(tokens_.size()));
    tokenizer_.encode(document, tokens_);
    if (tokenizer_.separator()) tokens_.push_back(*tokenizer_.separator());
  }

  const Tokenizer& tokenizer_;
  const EvalDataConfig& config_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int64_t> starts_;
};

std::string data_name(const EvalDataConfig& data) {
  if (data.name) return *data.name;
  const std::filesystem::path path = std::filesystem::path(data.path).lexically_normal();
  const std::string stem = path.stem().string();
  // "data/wiki/val/*.h5" is called after its folder.
  return stem.empty() || stem.find_first_of("*?[") != std::string::npos ? path.parent_path().filename().string() : stem;
}

// A run's checkpoints are called after the run.
std::string model_name(const LoadedModel& model) { return model.config.run.name; }

EvalProtocol protocol_of(const EvalRunGroup& eval, std::int64_t context) {
  EvalProtocol p;
  p.method = eval.method;
  p.context = context;
  p.stride = std::llround(eval.stride < 1 ? eval.stride * static_cast<double>(context) : eval.stride);
  if (eval.method == EvalMethod::sliding && (p.stride < 1 || p.stride > context))
    fail(Exit::config, "eval.stride", eval.stride, " is ", p.stride, " tokens; it must lie between 1 and the context, ",
         context);
  p.stride = std::clamp<std::int64_t>(p.stride, 1, context);
  p.score_from = eval.score_from;
  p.rows = eval.batch;
  p.position_buckets = eval.position_buckets;
  p.max_tokens = eval.max_tokens.value_or(0);
  return p;
}

void check_context(const LoadedModel& model, std::int64_t context) {
  const ModelConfig& c = model.config.model;
  if (c.arch == Arch::gpt2 && context > *c.max_seq)
    fail(Exit::config, "eval.contexts", context, " is longer than the ", *c.max_seq, " learned positions of ",
         model.path.string());
}

std::vector<Result> evaluate_model(const std::string& checkpoint, const EvalRunGroup& eval, DeviceType device,
                                   Communicator& comm, std::vector<std::filesystem::path>& paths) {
  LoadedModel model;
  on_every_rank(comm, "loading a checkpoint", [&] {
    model = load_model(checkpoint);
    place_parameters(model.model->parameters(), compute_stream(device, comm.local_rank()));
  });
  paths.push_back(model.path);
  auto sources = eval.data;
  if (sources.empty() && model.config.data.val.empty())
    fail(Exit::config, "eval.data", "names nothing, and ", model.path.string(),
         " was trained without a validation set");
  if (sources.empty()) sources.push_back({.name = "val", .path = "", .document_separator = {}, .field = "text"});
  const auto contexts = eval.contexts.empty() ? std::vector<std::int64_t>{model.config.data.seq_len} : eval.contexts;
  std::vector<Result> results;
  for (const auto& data : sources) {
    std::shared_ptr<const TokenSource> tokens;
    on_every_rank(comm, "opening the text", [&] {
      if (data.path.empty()) {
        tokens = std::make_shared<TokenStore>(model.config.data.val, model.tokenizer.get());
      } else if (is_shards(data.path)) {
        tokens = std::make_shared<TokenStore>(data.path, model.tokenizer.get());
      } else {
        tokens = TextTokens(*model.tokenizer, data).read();
      }
    });
    for (const std::int64_t context : contexts) {
      check_context(model, context);
      const EvalProtocol protocol = protocol_of(eval, context);
      Result result{model_name(model), data_name(data), protocol, {}};
      result.value = evaluate_perplexity(*model.model, *tokens, *model.tokenizer, protocol,
                                         model.config.model.attention.document_mask, comm);
      results.push_back(std::move(result));
    }
  }
  return results;
}

std::string result_line(const Result& r, bool named) {
  std::string line = named ? cat(r.model, " · ", r.data, " · ") : "";
  line += cat("tokens ", format_grouped(r.value.tokens), " · token-ppl ", format_fixed(r.value.token_ppl(), 3),
              " · word-ppl ", format_fixed(r.value.word_ppl(), 2), " · byte-ppl ", format_fixed(r.value.byte_ppl(), 3),
              " · bits/byte ", format_fixed(r.value.bits_per_byte(), 4), "   (", r.protocol_text(), ")");
  return line;
}

Json result_json(const Result& r) {
  Json positions = Json::array();
  for (const auto& b : r.value.positions) {
    positions.push_back({{"from", b.from},
                         {"to", b.to},
                         {"tokens", b.tokens},
                         {"loss", b.tokens > 0 ? Json(b.nll / static_cast<double>(b.tokens)) : Json(nullptr)}});
  }
  Json json{{"model", r.model},
            {"data", r.data},
            {"protocol",
             {{"method", kEvalMethodNames[static_cast<std::size_t>(r.protocol.method)]},
              {"context", r.protocol.context},
              {"text", r.protocol_text()}}},
            {"positions", positions}};
  if (r.protocol.method == EvalMethod::sliding) json["protocol"]["stride"] = r.protocol.stride;
  if (r.protocol.method == EvalMethod::chunked) json["protocol"]["score_from"] = r.protocol.score_from;
  for (const char* count : {"tokens", "words", "bytes"}) json[count] = static_cast<std::int64_t>(r.value.metric(count));
  for (const char* metric : {"nll", "loss", "token_ppl", "word_ppl", "byte_ppl", "bits_per_byte"}) {
    const double value = r.value.metric(metric);
    json[metric] = std::isfinite(value) ? Json(value) : Json(nullptr);
  }
  return json;
}

std::vector<std::string> split_dots(const std::string& name) {
  std::vector<std::string> parts{""};
  for (const char c : name) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

// "metric", "model.metric", "model.data.metric", "ctx512.metric", ...: the labels may come in any order and must leave
// one result.
double named_metric(const std::string& name, const std::vector<Result>& results) {
  auto labels = split_dots(name);
  const std::string metric = labels.back();
  labels.pop_back();
  const Result* found = nullptr;
  std::string known;
  for (const auto& r : results) {
    const std::string context = cat("ctx", r.protocol.context);
    known += cat("\n  ", r.model, ".", r.data, ".", context);
    const bool fits = std::all_of(labels.begin(), labels.end(),
                                  [&](const std::string& l) { return l == r.model || l == r.data || l == context; });
    if (!fits) continue;
    if (found != nullptr) fail(Exit::config, "fail-if", "\"", name, "\" fits several results; name one of:", known);
    found = &r;
  }
  if (found == nullptr) fail(Exit::config, "fail-if", "\"", name, "\" fits no result; there are:", known);
  return found->value.metric(metric);
}

// The run folder that a checkpoint lies in, or "".
std::filesystem::path run_of(const std::filesystem::path& checkpoint) {
  const auto checkpoints = checkpoint.parent_path();
  return checkpoints.filename() == "checkpoints" && std::filesystem::exists(checkpoints.parent_path() / "config.yaml")
             ? checkpoints.parent_path()
             : std::filesystem::path();
}

void write_reports(const EvalRunGroup& eval, const std::vector<Result>& results,
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
    write_json(run / "eval" /
                   cat(results[i].data, "-", kEvalMethodNames[static_cast<std::size_t>(eval.method)], "-",
                       results[i].protocol.context, ".json"),
               json);
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
  check_eval(file.eval, tree);
  file.eval.fail_if.insert(file.eval.fail_if.end(), options.fail_if.begin(), options.fail_if.end());
  // A malformed expression or an unknown metric is found before the work, not after it.
  for (const auto& expression : file.eval.fail_if) {
    evaluate_comparison(expression, [](const std::string& name) {
      Perplexity{}.metric(split_dots(name).back());
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
  std::vector<Result> results;
  std::vector<std::filesystem::path> paths;
  for (const auto& checkpoint : eval.checkpoints) {
    for (auto& result : evaluate_model(checkpoint, eval, device, comm, paths)) results.push_back(std::move(result));
  }
  if (comm.rank() == 0) {
    write_reports(eval, results, paths, results.size() / paths.size());
    Json report{{"results", Json::array()}};
    for (const auto& r : results) {
      if (!options.json) std::cout << result_line(r, results.size() > 1) << '\n';
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
  // A file with eval.checkpoints is one for `sieve eval`; both schemas have an eval group.
  ConfigTree tree;
  if (!config.empty()) tree.load(config);
  if (!tree.given("eval.checkpoints") && !tree.given("eval.data")) {
    const LoadedConfig loaded = load_run_config(config, overrides, world_size);
    warn_of_idle_keys(loaded.config, loaded.tree);
    return;
  }
  load_eval({.target = config, .overrides = overrides, .fail_if = {}, .json = false});
}

}  // namespace sieve
