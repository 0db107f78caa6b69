// Perplexity of a model on a token stream, by a named protocol (train/eval_windows.h; docs/evaluation.md says what the
// figures mean). Every token that some token predicts is a target: all but the first of the text, or of each document
// where windows are cut by document.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/token_source.h"
#include "data/tokenizer.h"
#include "dist/communicator.h"
#include "nn/decoder.h"
#include "train/eval_windows.h"

namespace sieve {

// Loss over a set of targets.
struct LossSum {
  std::int64_t tokens = 0;
  double nll = 0;  // sum, nats, fp64, added in the text's order
  void add(double loss) {
    ++tokens;
    nll += loss;
  }
};

// Over the targets that saw between `from` and `to - 1` tokens of the window.
struct PositionBucket : LossSum {
  std::int64_t from = 0, to = 0;
};

// Over the targets whose bigram was last seen between `from` and `to - 1` tokens before (train/recall.h); to = 0: or
// any number more; from = to = 0: those whose bigram was not seen.
struct RecallBucket : LossSum {
  std::int64_t from = 0, to = 0;
};

struct DocumentLoss : LossSum {
  std::int64_t index = 0;  // in the text, counted from 0
  std::int64_t bytes = 0;  // of the scored tokens
  std::vector<LossSum> recall;
};

// Over all scored targets, and over parts of them.
struct Perplexity : LossSum {
  std::int64_t words = 0, bytes = 0;  // of the scored text (train/scored_text.h)
  std::vector<PositionBucket> positions;
  std::vector<RecallBucket> recall;     // with protocol.recall: one more than its edges, then the one without a hit
  std::vector<DocumentLoss> documents;  // with protocol.by_document(): those with a scored target, ascending

  double token_ppl() const;      // exp(nll / tokens)
  double word_ppl() const;       // exp(nll / words)
  double byte_ppl() const;       // exp(nll / bytes)
  double bits_per_byte() const;  // nll / (bytes ln 2)
  // One of token_ppl word_ppl byte_ppl bits_per_byte nll loss tokens words bytes; Error(Exit::config) on another name.
  double metric(const std::string& name) const;
};

// Collective; the same bits on every rank and for any number of ranks. document_mask: tokens see their own document
// only.
Perplexity evaluate_perplexity(const Decoder& model, const TokenSource& source, const Tokenizer& tokenizer,
                               const EvalProtocol& protocol, bool document_mask, Communicator& comm);

}  // namespace sieve
