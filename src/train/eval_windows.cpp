#include "train/eval_windows.h"

#include <algorithm>

#include "core/error.h"

namespace sieve {
namespace {

// Windows over the targets (begin, stop) that are predicted from tokens at or after `begin`.
void cut_piece(const EvalProtocol& p, std::int64_t begin, std::int64_t stop, std::vector<EvalWindow>& windows) {
  const std::int64_t step = p.method == EvalMethod::sliding ? p.stride : p.context;
  const auto unscored = static_cast<std::int64_t>(p.score_from * static_cast<double>(p.context));
  std::int64_t scored_to = begin + 1;
  for (std::int64_t at = begin; scored_to < stop; at += step) {
    EvalWindow w{at, scored_to, std::min(at + p.context + 1, stop)};
    if (p.method == EvalMethod::chunked) w.score_begin = std::min(at + 1 + unscored, w.end);
    scored_to = w.end;
    if (w.score_begin < w.end) windows.push_back(w);
  }
}

void cut_tails(const EvalProtocol& p, std::int64_t begin, std::int64_t stop, std::vector<EvalWindow>& windows) {
  for (std::int64_t end = begin + 1 + p.span; end <= stop; end += p.span)
    windows.push_back({end - 1 - p.context, end - p.tail, end});
}

[[noreturn]] void nothing_to_score(const EvalProtocol& p, std::int64_t targets) {
  if (p.method == EvalMethod::tail)
    fail(Exit::data, "eval.span", "no document has the ", p.span + 1, " tokens of a span of ", p.span,
         " targets: choose a shorter one");
  if (p.score_from > 0)
    fail(Exit::data, "eval", "score_from = ", p.score_from, " leaves nothing to score in ", targets, " targets");
  fail(Exit::data, "eval", "no document has 2 tokens: nothing to predict");
}

}  // namespace

std::string EvalProtocol::text() const {
  std::string text = cat(kEvalMethodNames[static_cast<std::size_t>(method)], ", ctx ", context);
  if (method == EvalMethod::sliding) text += cat(", stride ", stride);
  if (method == EvalMethod::chunked && score_from > 0) text += cat(", score_from ", score_from);
  if (method == EvalMethod::tail) text += cat(", last ", tail, " of spans of ", span);
  return text + (by_document() ? ", documents apart" : ", eos-joined");
}

std::vector<EvalWindow> eval_windows(const EvalProtocol& p, std::int64_t tokens, std::span<const std::int64_t> starts) {
  require(p.context >= 1 && p.stride >= 1 && p.stride <= p.context, "eval", "context ", p.context, ", stride ",
          p.stride);
  const bool tail = p.method == EvalMethod::tail;
  require(!tail || (p.tail >= 1 && p.tail <= p.context && p.context <= p.span), "eval", "tail ", p.tail, ", context ",
          p.context, ", span ", p.span);
  require(!p.by_document() || !starts.empty(), "eval", "wants to know where documents begin");
  const std::int64_t targets = p.max_tokens > 0 ? std::min(tokens - 1, p.max_tokens) : tokens - 1;
  if (targets < 1) fail(Exit::data, "eval", "the text has ", tokens, " tokens: nothing to predict");
  const std::int64_t stop = targets + 1;
  std::vector<EvalWindow> windows;
  if (!p.by_document()) cut_piece(p, 0, stop, windows);
  for (std::size_t d = 0; p.by_document() && d < starts.size() && starts[d] < stop; ++d) {
    const std::int64_t document_end = d + 1 < starts.size() ? std::min(starts[d + 1], stop) : stop;
    (tail ? cut_tails : cut_piece)(p, starts[d], document_end, windows);
  }
  if (windows.empty()) nothing_to_score(p, targets);
  return windows;
}

}  // namespace sieve
