// Trains a byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) with GPT-2's split regex. The merges equal those of
// Hugging Face's BpeTrainer with the byte alphabet and the same minimum frequency: most frequent pair first, ties by
// the smaller (left id, right id).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "data/tokenizer.h"

namespace sieve {

struct BpeTrainOptions {
  std::int64_t vocab_size = 8192;           // 256 bytes + merges + 1 special token; at least 257
  std::int64_t min_frequency = 2;           // pairs seen less often are not merged
  std::string separator = "<|endoftext|>";  // the special token, last id
  std::int64_t max_unique_bytes = std::int64_t{1}
                                  << 30;  // memory for distinct pre-tokens; above it the rarest are dropped (logged)
};

struct BpeTrainReport {
  std::int64_t text_bytes = 0, documents = 0;
  std::int64_t unique_pretokens = 0;   // distinct pieces after the split
  std::int64_t dropped_pretokens = 0;  // distinct pieces lost to max_unique_bytes
  std::int64_t merges = 0;             // fewer than asked for when no pair is frequent enough
};

// Collects pieces, then merges. Memory: the distinct pre-tokens, not the text.
class BpeTrainer {
 public:
  explicit BpeTrainer(const BpeTrainOptions& options);
  ~BpeTrainer();

  void add(std::string_view document);  // a whole document
  // A document in pieces: every piece but the last with last = false.
  void add_piece(std::string_view text, bool last);

  // Called now and then with (merges done, merges wanted).
  using Progress = std::function<void(std::int64_t, std::int64_t)>;
  // Deterministic: depends on the multiset of documents (and on their order only when max_unique_bytes is exceeded).
  // Exit::data when no text was added.
  std::shared_ptr<const Tokenizer> train(BpeTrainReport* report = nullptr, const Progress& progress = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sieve
