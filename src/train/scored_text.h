// Words and bytes of the text that an evaluation scores.
#pragma once

#include <cstdint>
#include <vector>

#include "data/token_source.h"
#include "data/tokenizer.h"
#include "train/eval_windows.h"

namespace sieve {

// Counts words and bytes of the tokens of [1, tokens) that some window scores. A word is a maximal run without white
// space and counts where it starts. A special token is no text and ends a word.
struct TextCounts {
  std::int64_t words = 0, bytes = 0;
};
TextCounts count_scored_text(const TokenSource& source, const Tokenizer& tokenizer,
                             const std::vector<EvalWindow>& windows);

}  // namespace sieve
