#include "train/eval_config.h"

#include <algorithm>
#include <cctype>
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

void EvalSettings::fields(FieldVisitor& v) {
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
}

void NamedEvalSettings::fields(FieldVisitor& v) {
  v.text({"name", "name in tables, in fail_if and of files: letters, digits and _, between them - and ."}, name);
  EvalSettings::fields(v);
}

void EvalRunGroup::fields(FieldVisitor& v) {
  v.texts({"checkpoints", "checkpoints or run folders (their best, else latest)"}, checkpoints);
  v.list(
      {.name = "data", .doc = "texts to evaluate; none = the validation shards of the training", .shorthand = "path"},
      data);
  EvalSettings::fields(v);
  v.list({"protocols",
          "several evaluations of each text in one call; a key that one of them does not give is that of eval itself"},
         protocols);
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

std::vector<NamedEvalSettings> EvalRunGroup::evaluations() const {
  if (!protocols.empty()) return protocols;
  NamedEvalSettings own;
  static_cast<EvalSettings&>(own) = *this;
  return {own};
}

std::vector<std::int64_t> tail_contexts(const EvalSettings& settings) {
  std::vector<std::int64_t> contexts;
  for (std::int64_t c = settings.tail; c < settings.span; c *= 2) contexts.push_back(c);
  contexts.push_back(settings.span);
  return contexts;
}

namespace {

std::string protocol_path(std::size_t i) { return cat("eval.protocols[", i, "]"); }

// f(key, member) for each of the settings.
template <class F>
void each_setting(F&& f) {
  f("method", &EvalSettings::method);
  f("per_document", &EvalSettings::per_document);
  f("contexts", &EvalSettings::contexts);
  f("stride", &EvalSettings::stride);
  f("score_from", &EvalSettings::score_from);
  f("tail", &EvalSettings::tail);
  f("span", &EvalSettings::span);
  f("batch", &EvalSettings::batch);
  f("position_scale", &EvalSettings::position_scale);
  f("position_buckets", &EvalSettings::position_buckets);
  f("recall", &EvalSettings::recall);
  f("max_tokens", &EvalSettings::max_tokens);
}

bool is_solid(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

// Can it be part of a file's name, and a label in fail_if (train/expression.h)?
bool is_label(std::string_view name) {
  bool solid = false;  // the character before
  for (const char c : name) {
    if (!is_solid(c) && (!solid || (c != '-' && c != '.'))) return false;
    solid = is_solid(c);
  }
  return solid;
}

// The relations between the keys of the group and of its protocols.
class EvalChecks {
 public:
  EvalChecks(const EvalRunGroup& eval, const ConfigTree& tree)
      : eval_(eval), tree_(tree), evaluations_(eval.evaluations()) {}

  void run() {
    if (eval_.checkpoints.empty()) problem("eval.checkpoints", "names no checkpoint");
    for (at_ = 0; at_ < evaluations_.size(); ++at_) {
      if (!eval_.protocols.empty()) check_name();
      check_numbers();
      check_tail();
    }
    each_setting([&](const char* key, auto) { check_idle(key); });
    tree_.fail_all(problems_);
  }

 private:
  const NamedEvalSettings& now() const { return evaluations_[at_]; }
  std::string own(std::string_view key) const {
    return eval_.protocols.empty() ? cat("eval.", key) : cat(protocol_path(at_), ".", key);
  }
  // Where the evaluation takes a key from.
  std::string source(std::string_view key) const { return tree_.given(own(key)) ? own(key) : cat("eval.", key); }
  int order(std::string_view key) const { return tree_.origin_of(source(key)).order; }
  void problem(const std::string& path, std::string message) {
    std::pair<std::string, std::string> found{path, std::move(message)};  // several protocols may share a key
    if (std::find(problems_.begin(), problems_.end(), found) == problems_.end()) problems_.push_back(std::move(found));
  }

  void check_name() {
    constexpr std::size_t kLongest = 64;  // bytes: it becomes part of a file's name
    const std::string& name = now().name;
    if (!is_label(name) || name.size() > kLongest)
      problem(own("name"), cat("\"", name, "\" does not name the protocol: give 1 to ", kLongest,
                               " letters, digits and _, between them - and ."));
    for (std::size_t i = 0; i < at_; ++i) {
      if (evaluations_[i].name == name) return problem(own("name"), cat(name, " names ", protocol_path(i), " too"));
    }
  }

  void check_numbers() {
    for (const std::int64_t context : now().contexts) {
      if (context < 1) problem(source("contexts"), cat(context, " is not a number of tokens"));
    }
    const double stride = now().stride;
    if (stride > 1 && stride != std::floor(stride))
      problem(source("stride"), cat(stride, " is neither a share below 1 nor a whole number of tokens"));
    std::int64_t before = 0;
    for (const std::int64_t edge : now().recall) {
      if (edge <= before)
        problem(source("recall"), cat("the distance ", edge, before > 0 ? cat(" follows ", before) : "",
                                      ": edges are at least 1 and ascend"));
      before = edge;
    }
  }

  void check_tail() {
    const EvalSettings& e = now();
    if (e.method != EvalMethod::tail) return;
    if (e.tail > e.span)
      return problem(source("tail"), cat(e.tail, " targets are more than ", source("span"), ", ", e.span));
    for (const std::int64_t context : e.contexts) {
      if (context > e.span)
        problem(source("contexts"), cat(context, " reaches beyond ", source("span"), ", ", e.span,
                                        ": raise the span or leave the context out"));
      if (context >= 1 && context < e.tail)
        problem(source("contexts"), cat(context, " is shorter than ", source("tail"), ", ", e.tail,
                                        ": lower the tail or leave the context out"));
    }
  }

  // Why the evaluation's value of a key says nothing, or "". A choice from a nearer source (the command line) sets a
  // farther one's options aside; otherwise an option of another choice is a mistake, and the numbers would be those of
  // a protocol that nobody asked for.
  std::string idle(std::string_view key) const {
    const std::string_view method = kEvalMethodNames[static_cast<std::size_t>(now().method)];
    const std::string_view scale = kPositionScaleNames[static_cast<std::size_t>(now().position_scale)];
    const auto without = [&](std::string_view chooser, std::string_view wanted, std::string_view chosen) {
      if (wanted == chosen || order(key) < order(chooser)) return std::string();
      return cat("has no effect with ", source(chooser), "=", chosen, "; set ", source(chooser), "=", wanted,
                 " or leave it out");
    };
    if (order(key) < 0) return "";
    if (key == "stride") return without("method", "sliding", method);
    if (key == "score_from") return without("method", "chunked", method);
    if (key == "tail" || key == "span") return without("method", "tail", method);
    if (key == "position_buckets") return without("position_scale", "linear", scale);
    if (key == "per_document" && !now().per_document && method == "tail" && order(key) >= order("method"))
      return cat("false has no effect with ", source("method"), "=tail; leave it out");
    return "";
  }

  void check_idle(std::string_view key) {
    const std::string shared = cat("eval.", key);
    bool used = false;
    for (at_ = 0; at_ < evaluations_.size(); ++at_) {
      const std::string why = idle(key);
      const bool of_group = source(key) == shared && !eval_.protocols.empty();
      used = used || (of_group && why.empty());
      if (!of_group && !why.empty()) problem(own(key), why);
    }
    const int given = tree_.origin_of(shared).order;
    if (!eval_.protocols.empty() && !used && given >= 0 && given >= tree_.origin_of("eval.protocols").order)
      problem(shared, "has no effect on any of eval.protocols; leave it out or change it there");
  }

  const EvalRunGroup& eval_;
  const ConfigTree& tree_;
  std::vector<NamedEvalSettings> evaluations_;
  std::size_t at_ = 0;  // the evaluation that is looked at
  std::vector<std::pair<std::string, std::string>> problems_;
};

}  // namespace

void resolve_eval(EvalRunGroup& eval, const ConfigTree& tree) {
  for (std::size_t i = 0; i < eval.protocols.size(); ++i) {
    each_setting([&](const char* key, auto member) {
      if (!tree.given(cat(protocol_path(i), ".", key))) eval.protocols[i].*member = eval.*member;
    });
  }
  EvalChecks(eval, tree).run();
}

}  // namespace sieve
