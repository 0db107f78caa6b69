// First phase of preparation: texts -> spool of tokens.
#pragma once

#include <cstdint>
#include <functional>

#include "data/prepare.h"
#include "data/token_spool.h"

namespace sieve {

// Encodes every document of `files` into `spool`, each with its separator and the hash that decides its split; fills
// the report's counts and source hash and keeps `state` up to date for `progress`.
void encode_texts(const Tokenizer& tokenizer, const std::vector<TextFile>& files, const PrepareOptions& options,
                  TokenSpool& spool, PrepareReport& report, PrepareProgress& state,
                  const std::function<void(const PrepareProgress&)>& progress);

}  // namespace sieve
