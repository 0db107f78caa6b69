// Protocols of an evaluation, and the windows that they cut a text into (docs/evaluation.md). A window of context c
// reads c tokens and predicts the token after each.
//   chunked   disjoint windows; every target of a window is scored, or only those from score_from * context on
//   sliding   windows moved by `stride`; the first scores all its targets, later ones their last `stride`
//   tail      the last `tail` targets of each disjoint span of `span` targets of a document, whatever the context is:
//             windows of `context` inputs that end with the span
// With stride = context sliding is chunked, with context = span tail is chunked by documents with all but the last
// `tail` targets unscored. The last window of chunked and sliding may be shorter than `context`; a span is whole.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

enum class EvalMethod { chunked, sliding, tail };
inline constexpr std::string_view kEvalMethodNames[] = {"chunked", "sliding", "tail"};

// Buckets of the loss by position: equal shares of the context, or [2^b, 2^(b + 1)) tokens of context.
enum class PositionScale { linear, log2 };
inline constexpr std::string_view kPositionScaleNames[] = {"linear", "log2"};

struct EvalProtocol {
  EvalMethod method = EvalMethod::chunked;
  std::int64_t context = 1024;
  std::int64_t stride = 1024;             // sliding
  double score_from = 0;                  // chunked: share of a window that is context only
  bool per_document = false;              // windows end with their document; tail: always
  std::int64_t tail = 512, span = 16384;  // tail: tail <= context <= span
  std::int64_t rows = 8;                  // windows of one forward
  PositionScale position_scale = PositionScale::linear;
  std::int64_t position_buckets = 32;  // linear
  std::vector<std::int64_t> recall;    // ascending upper edges of distances; empty: repeated bigrams are not measured
  std::int64_t max_tokens = 0;         // only the first so many targets of the text; 0: all

  bool by_document() const { return per_document || method == EvalMethod::tail; }
  std::string text() const;  // "sliding, ctx 512, stride 256, eos-joined"
};

// Targets [score_begin, end) of the window that reads inputs [begin, end - 1): target t is token t, predicted from
// tokens [begin, t).
struct EvalWindow {
  std::int64_t begin = 0, score_begin = 0, end = 0;
  std::int64_t inputs() const { return end - 1 - begin; }
  std::int64_t targets() const { return end - score_begin; }
};

// Windows of a text of `tokens` tokens in the order of their targets, each target once. starts: where its documents
// begin, ascending, first 0; needed where windows are cut by document: then a document's first token, which nothing
// predicts, and documents of one token are left out. Error(Exit::data) where nothing is left to score.
std::vector<EvalWindow> eval_windows(const EvalProtocol& protocol, std::int64_t tokens,
                                     std::span<const std::int64_t> starts = {});

}  // namespace sieve
