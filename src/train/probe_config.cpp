#include "train/probe_config.h"

#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <string_view>
#include <utility>

#include "core/error.h"

namespace sieve {

constexpr std::int64_t kLongest = 1 << 24;  // tokens of a row: ProbeResult::kDistances

void ProbeEvalGroup::fields(FieldVisitor& v) {
  v.integer({.name = "examples", .doc = "fresh rows of each length, number of items and depth", .min = 1}, examples);
  v.integer({.name = "every",
             .doc = "updates between measurements of the accuracy as trained, for the curve; 0 = only at the end",
             .min = 0},
            every);
  v.integers({"lengths", "tokens of an evaluated row, one result each; none = probe.length"}, lengths);
  v.integers({"items", "items of an evaluated row, one result each; none = probe.items"}, items);
  v.reals(
      {"depths",
       "passkey: where the sentence stands, from 0, the beginning, to 1, right before the question; none = 0, 0.25, "
       "0.5, 0.75, 1"},
      depths);
}

void ProbeGroup::fields(FieldVisitor& v) {
  v.choice({"task",
            "selective_copy (marked tokens in noise, recalled at the end), mqar (key-value pairs, every key asked once "
            "more; Arora et al. 2023, arXiv 2312.04927), passkey (one sentence of many tokens of noise), long_copy (a "
            "block, noise, the block again)"},
           kProbeTaskNames, task);
  v.integer({.name = "length", .doc = "tokens of a row in training", .min = 2, .max = kLongest}, length);
  v.integer({.name = "items",
             .doc = "what a row holds to be remembered: marked tokens, pairs, tokens of the key, tokens of the block",
             .min = 1,
             .max = 1 << 20},
            items);
  v.integer({.name = "symbols",
             .doc = "different answers, one of which is right by chance; auto = 16, for mqar 4096",
             .min = 2,
             .max = 1 << 20},
            symbols);
  v.integer({.name = "keys",
             .doc = "different keys of mqar, or names of an unmarked passkey; auto = 4096, for passkey 256",
             .min = 2,
             .max = 1 << 20},
            keys);
  v.boolean({"marked",
             "mqar, passkey, long_copy: what will be asked for differs from the rest where it stands (noise has tokens "
             "of its own); false: mqar and long_copy take noise from the tokens of the items, passkey fills the row "
             "with sentences of which the question names one; auto = false for mqar, else true"},
            marked);
  v.boolean(
      {"hints",
       "training rows ask for more than is measured, so that there is more to learn from: selective_copy a marked "
       "token for its own symbol, mqar a value for its key, an unmarked passkey a digit for its sentence's name "
       "and up to 16 questions at the end"},
      hints);
  v.boolean(
      {"vary",
       "a training row holds from one item to probe.items, an unmarked passkey from one sentence to as many as fit, "
       "small numbers as often as large ones; auto = true for mqar and an unmarked passkey, which are hardly "
       "learned otherwise, else false"},
      vary);
  v.integer({.name = "steps", .doc = "updates", .min = 1}, steps);
  v.integer({.name = "batch", .doc = "rows of an update, over all ranks", .min = 1}, batch);
  v.integer(
      {.name = "micro_batch", .doc = "rows of one forward and backward on a rank; auto = batch / ranks", .min = 1},
      micro_batch);
  v.real({.name = "lr", .doc = "peak learning rate", .min = 0}, lr);
  v.real({.name = "weight_decay", .doc = "decoupled decay of matrices", .min = 0}, weight_decay);
  v.real({.name = "grad_clip", .doc = "largest global norm of the gradient; 0 = no clipping", .min = 0}, grad_clip);
  v.group({"schedule", "learning rate over the run"}, schedule);
  v.texts({"freeze", "patterns of parameter names that are not trained, such as \"*.sparsek.*\""}, freeze);
  v.integer({.name = "seed", .doc = "seed of the initial weights and of all rows", .min = 0}, seed);
  v.group({"eval", "what is measured"}, eval);
}

void ProbeConfig::fields(FieldVisitor& v) {
  v.integer({.name = "schema", .doc = "version of this schema", .min = 1, .max = 1}, schema);
  v.group({"device", "where to compute"}, device);
  v.group({"model", "the model that is trained, as in pretraining"}, model);
  v.group({"probe", "the task, the training and what is measured"}, probe);
}

ProbeSpec ProbeGroup::spec() const {
  return {.task = task,
          .items = items,
          .symbols = *symbols,
          .keys = *keys,
          .marked = *marked,
          .hints = hints,
          .vary = *vary};
}

std::vector<ProbeSetting> ProbeGroup::settings() const {
  std::vector<ProbeSetting> out;
  for (const std::int64_t T : eval.lengths) {
    for (const std::int64_t n : eval.items) {
      if (eval.depths.empty()) out.push_back({T, n, {}});
      for (const double depth : eval.depths) out.push_back({T, n, depth});
    }
  }
  return out;
}

namespace {

using Problems = std::vector<std::pair<std::string, std::string>>;

void resolve(ProbeGroup& p, int world_size) {
  const bool mqar = p.task == ProbeTask::mqar;
  if (!p.symbols) p.symbols = mqar ? 4096 : 16;
  if (!p.keys) p.keys = mqar ? 4096 : 256;
  if (!p.marked) p.marked = !mqar;
  if (!p.vary) p.vary = mqar || (p.task == ProbeTask::passkey && !*p.marked);
  if (!p.micro_batch) p.micro_batch = std::max<std::int64_t>(1, p.batch / world_size);
  if (p.eval.lengths.empty()) p.eval.lengths = {p.length};
  if (p.eval.items.empty()) p.eval.items = {p.items};
  if (p.eval.depths.empty() && p.task == ProbeTask::passkey) p.eval.depths = {0, 0.25, 0.5, 0.75, 1};
}

// A task from a nearer source (the command line) sets a farther one's keys aside; otherwise a key of another task is a
// mistake.
void check_idle(const ProbeGroup& p, const ConfigTree& tree, Problems& problems) {
  const std::string_view task = kProbeTaskNames[static_cast<std::size_t>(p.task)];
  const auto idle = [&](const std::string& key, bool used) {
    const int given = tree.origin_of(key).order;
    if (used || given < 0 || given < tree.origin_of("probe.task").order) return;
    problems.emplace_back(
        key, cat("has no effect with probe.task=", task,
                 p.task == ProbeTask::passkey && *p.marked ? " and probe.marked=true" : "", "; leave it out"));
  };
  idle("probe.keys", p.task == ProbeTask::mqar || (p.task == ProbeTask::passkey && !*p.marked));
  idle("probe.marked", p.task != ProbeTask::selective_copy);
  idle("probe.hints", p.task != ProbeTask::long_copy && (p.task != ProbeTask::passkey || !*p.marked));
  idle("probe.eval.depths", p.task == ProbeTask::passkey);
}

void check_items(const ProbeGroup& p, Problems& problems) {
  const auto check = [&](const std::string& key, std::int64_t items) {
    if (items < 1) problems.emplace_back(key, cat(items, " is not a number of items"));
    if (p.task == ProbeTask::mqar && items > *p.keys)
      problems.emplace_back(key, cat(items, " pairs want as many different keys, and probe.keys is ", *p.keys));
    if (p.task == ProbeTask::selective_copy && items > p.items)
      problems.emplace_back(key, cat(items, " is more than probe.items, ", p.items,
                                     ": the slots beyond are never trained; raise probe.items"));
  };
  check("probe.items", p.items);
  for (const std::int64_t items : p.eval.items) check("probe.eval.items", items);
}

void check_lengths(const ProbeGroup& p, Problems& problems) {
  const auto check = [&](const std::string& key, std::int64_t length, std::int64_t items) {
    const std::int64_t least = shortest_probe(p.spec(), items);
    if (length < least)
      problems.emplace_back(key,
                            cat(length, " tokens do not hold ", items, " items of ",
                                kProbeTaskNames[static_cast<std::size_t>(p.task)], "; they take at least ", least));
  };
  check("probe.length", p.length, p.items);
  const std::int64_t most = *std::max_element(p.eval.items.begin(), p.eval.items.end());
  for (const std::int64_t length : p.eval.lengths) {
    check("probe.eval.lengths", length, most);
    if (length > kLongest) problems.emplace_back("probe.eval.lengths", cat(length, " is more than ", kLongest));
  }
  for (const double depth : p.eval.depths) {
    if (!(depth >= 0 && depth <= 1)) problems.emplace_back("probe.eval.depths", cat(depth, " is outside 0 to 1"));
  }
}

void check_training(const ProbeGroup& p, int world_size, Problems& problems) {
  const std::int64_t unit = *p.micro_batch * world_size;
  if (p.batch % unit != 0)
    problems.emplace_back("probe.batch", cat(p.batch, " rows do not divide into micro-batches of ", *p.micro_batch,
                                             " rows on ", world_size, world_size == 1 ? " rank" : " ranks",
                                             "; give a multiple of ", unit, ", or another probe.micro_batch"));
  if (p.schedule.warmup >= p.steps)
    problems.emplace_back("probe.schedule.warmup",
                          cat("warm-up of ", p.schedule.warmup, " updates is not shorter than the run of ", p.steps));
  if (p.schedule.min_lr > p.lr)
    problems.emplace_back("probe.schedule.min_lr", cat(p.schedule.min_lr, " is above probe.lr = ", p.lr));
}

// The model's own checks speak of the length of its training data, which is the row's here.
std::string of_probe(std::string message) {
  constexpr std::string_view kTheirs = "data.seq_len", kOurs = "probe.length";
  for (std::size_t at = 0; (at = message.find(kTheirs, at)) != std::string::npos; at += kOurs.size())
    message.replace(at, kTheirs.size(), kOurs);
  return message;
}

void check_model(const ProbeConfig& c, Problems& problems) {
  const ProbeGroup& p = c.probe;
  c.model.check(p.length, [&](const std::string& path, const std::string& message) {
    problems.emplace_back("model." + path, of_probe(message));
  });
  const std::int64_t vocab = probe_vocab(p.spec());
  if (c.model.vocab_size && *c.model.vocab_size < vocab)
    problems.emplace_back("model.vocab_size",
                          cat(*c.model.vocab_size, " is less than the ", vocab, " tokens of the task; leave it out"));
  const std::int64_t longest = *std::max_element(p.eval.lengths.begin(), p.eval.lengths.end());
  if (c.model.arch == Arch::gpt2 && longest > c.model.max_seq.value_or(p.length))
    problems.emplace_back("probe.eval.lengths",
                          cat(longest, " is longer than the ", c.model.max_seq.value_or(p.length),
                              " learned positions of gpt2; take model.arch=llama, or leave it out"));
}

std::vector<std::pair<std::string, std::string>> probe_environment() {
  std::vector<std::pair<std::string, std::string>> variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::size_t equals = text.find('=');
    for (const std::string_view group : {"SIEVE_probe__", "SIEVE_model__", "SIEVE_device__"}) {
      if (equals != std::string_view::npos && text.substr(0, group.size()) == group)
        variables.emplace_back(text.substr(0, equals), text.substr(equals + 1));
    }
  }
  std::sort(variables.begin(), variables.end());
  return variables;
}

}  // namespace

LoadedProbe load_probe(const std::string& file, const std::vector<std::string>& overrides, int world_size) {
  LoadedProbe loaded;
  if (!file.empty()) loaded.tree.load(file);
  loaded.tree.overlay_environment(probe_environment());
  loaded.tree.overlay(overrides);
  ProbeConfig& c = loaded.config;
  loaded.tree.bind(c);
  resolve(c.probe, world_size);
  Problems problems;
  check_idle(c.probe, loaded.tree, problems);
  check_items(c.probe, problems);
  check_lengths(c.probe, problems);
  check_training(c.probe, world_size, problems);
  check_model(c, problems);
  loaded.tree.fail_all(problems);
  c.model.resolve(probe_vocab(c.probe.spec()), c.probe.length, c.probe.seed);
  return loaded;
}

}  // namespace sieve
