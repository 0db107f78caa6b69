#include "corpus.h"

#include <filesystem>
#include <iterator>

#include "core/rng.h"
#include "io/file.h"
#include "io/json.h"

namespace sieve::test {

std::shared_ptr<const Tokenizer> bpe() {
  return load_tokenizer_json(std::string(SIEVE_GOLDEN_DIR) + "/tokenizers/gpt2_style.json");
}

std::string words(std::uint64_t seed, std::size_t n) {
  static const char* const kWords[] = {"it", " was", " the",   " best", " of", " times",
                                       ",",  "\n",   " naïve", " 東京", " 42", "\n\n"};
  const Philox random{seed, 2};
  std::string out;
  for (std::size_t i = 0; i < n; ++i) out += kWords[random.bits64(i) % std::size(kWords)];
  return out;
}

std::string json_lines(const std::vector<std::string>& texts, const char* field) {
  std::string out;
  for (const std::string& t : texts) out += Json{{"id", 1}, {field, t}}.dump() + "\n";
  return out;
}

PrepareOptions options_for(const Folder& folder, std::vector<std::string> inputs, const std::string& out) {
  PrepareOptions o;
  o.inputs = std::move(inputs);
  o.output = folder / out;
  return o;
}

std::string make_shards(const Folder& folder, const Tokenizer& t, const std::string& out) {
  std::vector<std::string> texts;
  for (std::uint64_t i = 0; i < 40; ++i) texts.push_back(words(i, 50));
  auto o = options_for(folder, {folder.write("in.jsonl", json_lines(texts))}, out);
  o.shard_tokens = 700;
  prepare(t, o);
  return o.output + "/train";
}

std::vector<std::string> documents(const TokenStore& store, const Tokenizer& t) {
  std::vector<std::int64_t> starts;
  store.document_starts(0, store.tokens(), starts);
  REQUIRE(static_cast<std::int64_t>(starts.size()) == store.documents());
  starts.push_back(store.tokens());
  std::vector<std::string> out;
  for (std::size_t d = 0; d + 1 < starts.size(); ++d) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(starts[d + 1] - starts[d]));
    store.read(starts[d], ids);
    REQUIRE(ids.back() == *t.separator());
    ids.pop_back();
    out.push_back(t.decode(ids));
  }
  return out;
}

std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> out;
  for (const auto& e : std::filesystem::recursive_directory_iterator(folder)) {
    if (e.is_regular_file()) out[std::filesystem::relative(e.path(), folder).string()] = read_file(e.path(), 1 << 30);
  }
  return out;
}

}  // namespace sieve::test
