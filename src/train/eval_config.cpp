#include "train/eval_config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"

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
  v.choice({"method",
            "protocol: disjoint windows, windows moved by a stride, or the last targets of each span of a document for "
            "every context"},
           kEvalMethodNames, method);
  v.boolean({"per_document",
             "no window crosses a document's bounds, whose first token is not scored, and results name every document; "
             "method tail: always"},
            per_document);
  v.integers({"contexts",
              "tokens that a window reads, one result each; none = data.seq_len of the training, with method tail "
              "eval.tail and its doublings up to eval.span"},
             contexts);
  v.real({.name = "stride",
          .doc = "sliding: step of the windows; below 1 a share of the context, from 1 on tokens",
          .min = 1e-9},
         stride);
  v.real({.name = "score_from", .doc = "chunked: share of each window that is context only", .min = 0, .max = 0.999},
         score_from);
  v.integer({.name = "tail", .doc = "tail: scored targets at the end of each span, at most a context", .min = 1}, tail);
  v.integer(
      {.name = "span", .doc = "tail: targets of a span, at least a context; documents are cut into them", .min = 1},
      span);
  v.integer({.name = "batch",
             .doc = "windows of one forward; tail: with the longest context, more with a shorter one",
             .min = 1},
            batch);
  v.choice({"position_scale", "buckets of the loss by position: equal shares of the context, or doubling"},
           kPositionScaleNames, position_scale);
  v.integer({.name = "position_buckets", .doc = "linear: buckets of the loss by position", .min = 1}, position_buckets);
  v.integers(
      {"recall",
       "edges of the loss by distance to the last occurrence of a target's bigram, such as [64, 512, 3072]; none "
       "= not measured"},
      recall);
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

std::vector<std::int64_t> tail_contexts(const EvalRunGroup& eval) {
  std::vector<std::int64_t> contexts;
  for (std::int64_t c = eval.tail; c < eval.span; c *= 2) contexts.push_back(c);
  contexts.push_back(eval.span);
  return contexts;
}

namespace {

using Problems = std::vector<std::pair<std::string, std::string>>;

// A choice from a nearer source (the command line) sets a farther one's options aside; otherwise an option of another
// choice is a mistake, and the numbers would be those of a protocol that nobody asked for.
void check_idle(const EvalRunGroup& eval, const ConfigTree& tree, Problems& problems) {
  const auto idle = [&](const std::string& key, const std::string& chooser, std::string_view wanted,
                        std::string_view chosen) {
    const int given = tree.origin_of(key).order;
    if (given < 0 || wanted == chosen || given < tree.origin_of(chooser).order) return;
    problems.emplace_back(
        key, cat("has no effect with ", chooser, "=", chosen, "; set ", chooser, "=", wanted, " or leave it out"));
  };
  const std::string_view method = kEvalMethodNames[static_cast<std::size_t>(eval.method)];
  idle("eval.stride", "eval.method", "sliding", method);
  idle("eval.score_from", "eval.method", "chunked", method);
  idle("eval.tail", "eval.method", "tail", method);
  idle("eval.span", "eval.method", "tail", method);
  idle("eval.position_buckets", "eval.position_scale", "linear",
       kPositionScaleNames[static_cast<std::size_t>(eval.position_scale)]);
  if (eval.method == EvalMethod::tail && !eval.per_document &&
      tree.origin_of("eval.per_document").order >= std::max(tree.origin_of("eval.method").order, 0))
    problems.emplace_back("eval.per_document", "false has no effect with eval.method=tail; leave it out");
}

void check_tail(const EvalRunGroup& eval, Problems& problems) {
  if (eval.method != EvalMethod::tail) return;
  if (eval.tail > eval.span) {
    problems.emplace_back("eval.tail", cat(eval.tail, " targets are more than eval.span, ", eval.span));
    return;
  }
  for (const std::int64_t context : eval.contexts) {
    if (context > eval.span)
      problems.emplace_back("eval.contexts", cat(context, " reaches beyond eval.span, ", eval.span,
                                                 ": raise the span or leave the context out"));
    if (context >= 1 && context < eval.tail)
      problems.emplace_back("eval.contexts", cat(context, " is shorter than eval.tail, ", eval.tail,
                                                 ": lower the tail or leave the context out"));
  }
}

}  // namespace

void check_eval(const EvalRunGroup& eval, const ConfigTree& tree) {
  Problems problems;
  if (eval.checkpoints.empty()) problems.emplace_back("eval.checkpoints", "names no checkpoint");
  for (const std::int64_t context : eval.contexts) {
    if (context < 1) problems.emplace_back("eval.contexts", cat(context, " is not a number of tokens"));
  }
  if (eval.stride > 1 && eval.stride != std::floor(eval.stride))
    problems.emplace_back("eval.stride", cat(eval.stride, " is neither a share below 1 nor a whole number of tokens"));
  std::int64_t before = 0;
  for (const std::int64_t edge : eval.recall) {
    if (edge <= before)
      problems.emplace_back("eval.recall", cat("the distance ", edge, before > 0 ? cat(" follows ", before) : "",
                                               ": edges are at least 1 and ascend"));
    before = edge;
  }
  check_tail(eval, problems);
  check_idle(eval, tree, problems);
  tree.fail_all(problems);
}

}  // namespace sieve
