// Small corpora for the tests of preparation and of the token store.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/prepare.h"
#include "data/token_store.h"
#include "data/tokenizer.h"
#include "helpers.h"

namespace sieve::test {

std::shared_ptr<const Tokenizer> bpe();                // golden/tokenizers/gpt2_style.json
std::string words(std::uint64_t seed, std::size_t n);  // n words, some not ASCII
std::string json_lines(const std::vector<std::string>& texts, const char* field = "text");
PrepareOptions options_for(const Folder& folder, std::vector<std::string> inputs, const std::string& out = "out");
// 40 documents in several shards; their folder.
std::string make_shards(const Folder& folder, const Tokenizer& t, const std::string& out = "out");

// The documents of a store as text, separators taken off.
std::vector<std::string> documents(const TokenStore& store, const Tokenizer& t);
// {path: bytes} of all files below a folder.
std::map<std::string, std::string> contents(const std::string& folder);

}  // namespace sieve::test
