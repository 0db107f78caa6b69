// The text of a run, opened and checked: tokenizer, training corpus, validation corpus.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/loader.h"
#include "data/token_store.h"
#include "data/tokenizer.h"
#include "train/load_config.h"

namespace sieve {

struct RunData {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const TrainingSet> train;
  std::shared_ptr<const TokenSource> val;  // null: no validation set
  std::string tokenizer_hash, train_hash, val_hash;
};

// Opens what data and tokenizer name. Relations that need files are checked here: shards of this tokenizer
// (Exit::data), at least one whole sequence (Exit::data), no validation shard among the training ones (Exit::config,
// with the place of data.val), a vocabulary that holds every token (Exit::config).
RunData open_run_data(const RunConfig& config, const ConfigTree& tree);

// Exit::data with the place of tokenizer.path, and how to get one, where there is no such file.
std::shared_ptr<const Tokenizer> open_run_tokenizer(const RunConfig& config, const ConfigTree& tree);

// Fills every `auto` of the configuration from the tokenizer's vocabulary, the sequence length and the number of ranks.
void resolve_config(RunConfig& config, std::int64_t vocab_size, int world_size);

}  // namespace sieve
