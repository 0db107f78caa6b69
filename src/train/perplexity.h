// Perplexity of a model on a token stream, by a named protocol (docs/configuration.md, "Evaluation"). Every token but
// the first is a target.
//   chunked   disjoint windows of `context` inputs; every target of a window is scored, or only those from score_from *
//   context on sliding   windows of `context` inputs moved by `stride`; the first scores all its targets, later ones
//   their last `stride`
// With stride = context sliding is chunked. The last window may be shorter than `context`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/token_source.h"
#include "data/tokenizer.h"
#include "dist/communicator.h"
#include "nn/decoder.h"

namespace sieve {

enum class EvalMethod { chunked, sliding };
inline constexpr std::string_view kEvalMethodNames[] = {"chunked", "sliding"};

struct EvalProtocol {
  EvalMethod method = EvalMethod::chunked;
  std::int64_t context = 1024;
  std::int64_t stride = 1024;  // sliding
  double score_from = 0;       // chunked: share of a window that is context only
  std::int64_t rows = 8;       // windows of one forward
  std::int64_t position_buckets = 32;
  std::int64_t max_tokens = 0;  // only the first so many targets; 0: all
};

// Targets [score_begin, end) of the window that reads inputs [begin, end - 1): target t is token t, predicted from
// tokens [begin, t).
struct EvalWindow {
  std::int64_t begin = 0, score_begin = 0, end = 0;
};
std::vector<EvalWindow> eval_windows(const EvalProtocol& protocol, std::int64_t tokens);

// Loss over the targets that saw between `from` and `to - 1` tokens of context.
struct PositionBucket {
  std::int64_t from = 0, to = 0, tokens = 0;
  double nll = 0;  // sum, nats
};

struct Perplexity {
  double nll = 0;           // sum over scored targets, nats, fp64
  std::int64_t tokens = 0;  // scored targets
  std::int64_t words = 0,
               bytes = 0;  // of the scored text; a word is a maximal run without whitespace and counts where it starts
  std::vector<PositionBucket> positions;

  double token_ppl() const;      // exp(nll / tokens)
  double word_ppl() const;       // exp(nll / words)
  double byte_ppl() const;       // exp(nll / bytes)
  double bits_per_byte() const;  // nll / (bytes ln 2)
  // One of token_ppl word_ppl byte_ppl bits_per_byte nll loss tokens words bytes; Error(Exit::config) on another name.
  double metric(const std::string& name) const;
};

// Collective; the same bits on every rank and for any number of ranks: windows are spread over the ranks and their sums
// added in order. document_mask: tokens see their own document only.
Perplexity evaluate_perplexity(const Decoder& model, const TokenSource& source, const Tokenizer& tokenizer,
                               const EvalProtocol& protocol, bool document_mask, Communicator& comm);

// Counts words and bytes of the tokens of [1, tokens) that some window scores. A special token is no text and ends a
// word.
struct TextCounts {
  std::int64_t words = 0, bytes = 0;
};
TextCounts count_scored_text(const TokenSource& source, const Tokenizer& tokenizer,
                             const std::vector<EvalWindow>& windows);

}  // namespace sieve
