#include "train/eval_config.h"

#include <cmath>
#include <utility>

namespace sieve {

void EvalDataConfig::fields(FieldVisitor& v) {
  v.text({"name", "name in tables and in fail_if; auto = the file's name without its ending"}, name);
  v.text({"path", "token shards (.h5, patterns allowed), or text: files, folders, JSON lines"}, path);
  v.text({.name = "document_separator",
          .doc = "text: a document begins where this text does; null = one document a file",
          .none = "null"},
         document_separator);
  v.text({"field", "JSON lines: the field that holds the text"}, field);
}

void EvalRunGroup::fields(FieldVisitor& v) {
  v.texts({"checkpoints", "checkpoints or run folders (their best, else latest)"}, checkpoints);
  v.list(
      {.name = "data", .doc = "texts to evaluate; none = the validation shards of the training", .shorthand = "path"},
      data);
  v.choice({"method", "protocol: disjoint windows, or windows moved by a stride"}, kEvalMethodNames, method);
  v.integers({"contexts", "tokens of a window, one result each; none = data.seq_len of the training"}, contexts);
  v.real({.name = "stride",
          .doc = "sliding: step of the windows; below 1 a share of the context, from 1 on tokens",
          .min = 1e-9},
         stride);
  v.real({.name = "score_from", .doc = "chunked: share of each window that is context only", .min = 0, .max = 0.999},
         score_from);
  v.integer({.name = "batch", .doc = "windows of one forward", .min = 1}, batch);
  v.integer({.name = "position_buckets", .doc = "buckets of the loss by position", .min = 1}, position_buckets);
  v.integer(
      {.name = "max_tokens", .doc = "only the first so many tokens of a text; null = all", .min = 1, .none = "null"},
      max_tokens);
  v.text({.name = "out",
          .doc = "JSON report; null = eval/ in the run folder of the checkpoint, where it lies in one",
          .none = "null"},
         out);
  v.texts({"fail_if", "comparisons that make the exit code 7, such as \"token_ppl > 30\""}, fail_if);
}

void EvalFile::fields(FieldVisitor& v) {
  v.integer({.name = "schema", .doc = "version of this schema", .min = 1, .max = 1}, schema);
  v.group({"eval", "what to evaluate"}, eval);
}

void check_eval(const EvalRunGroup& eval, const ConfigTree& tree) {
  std::vector<std::pair<std::string, std::string>> problems;
  if (eval.checkpoints.empty()) problems.emplace_back("eval.checkpoints", "names no checkpoint");
  for (const std::int64_t context : eval.contexts) {
    if (context < 1) problems.emplace_back("eval.contexts", cat(context, " is not a number of tokens"));
  }
  if (eval.stride > 1 && eval.stride != std::floor(eval.stride))
    problems.emplace_back("eval.stride", cat(eval.stride, " is neither a share below 1 nor a whole number of tokens"));
  // A method from a nearer source (the command line) sets a farther one's options aside; otherwise an option of the
  // other method is a mistake, and the numbers would be those of a protocol that nobody asked for.
  const auto idle = [&](const std::string& key, EvalMethod method) {
    const int given = tree.origin_of(key).order;
    if (given < 0 || eval.method == method || given < tree.origin_of("eval.method").order) return;
    problems.emplace_back(
        key, cat("has no effect with eval.method=", kEvalMethodNames[static_cast<std::size_t>(eval.method)],
                 "; set eval.method=", kEvalMethodNames[static_cast<std::size_t>(method)], " or leave it out"));
  };
  idle("eval.stride", EvalMethod::sliding);
  idle("eval.score_from", EvalMethod::chunked);
  tree.fail_all(problems);
}

}  // namespace sieve
