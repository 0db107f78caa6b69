// The text that an evaluation reads: token shards, or files that are encoded on the spot.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/token_source.h"
#include "data/tokenizer.h"
#include "train/eval_config.h"

namespace sieve {

struct EvalText {
  std::shared_ptr<const TokenSource> tokens;
  std::vector<std::string> files;  // of each document, where the text is read from files; empty for shards
};

// Exit::data, naming the path: nothing there, nothing in it, shards of another tokenizer.
EvalText open_eval_text(const EvalDataConfig& data, const Tokenizer& tokenizer);

// The texts of one call: each is opened, and encoded, once for all checkpoints that encode it alike.
class EvalTexts {
 public:
  // trained: shards that stand for a text without a path, the validation set of the checkpoint's training.
  const EvalText& open(const EvalDataConfig& data, const std::vector<std::string>& trained, const Tokenizer& tokenizer);

 private:
  std::map<std::string, EvalText> texts_;  // by what decides their tokens
};

// What tables call it: its name, else the file's without its ending.
std::string eval_data_name(const EvalDataConfig& data);

}  // namespace sieve
