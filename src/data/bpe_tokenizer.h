// The tokenizer over a BpeModel; made by load_tokenizer_json, by training, and for the byte tokenizer.
#pragma once

#include <memory>
#include <string>

#include "data/bpe_model.h"
#include "data/tokenizer.h"

namespace sieve {

// `json`: the file as it was read, which save() writes again; empty: written from the model.
std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeModel model, std::string name, std::string subject,
                                                    std::string json = {});

}  // namespace sieve
