#include "train/eval_text.h"

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/parallel_for.h"
#include "data/texts.h"
#include "data/token_store.h"

namespace sieve {
namespace {

bool is_shards(const std::string& path) {
  const auto ends = [](const std::string& s) { return s.size() >= 3 && s.compare(s.size() - 3, 3, ".h5") == 0; };
  if (ends(path)) return true;
  if (!std::filesystem::is_directory(path)) return false;
  return std::any_of(std::filesystem::directory_iterator(path), std::filesystem::directory_iterator(),
                     [&](const auto& entry) { return ends(entry.path().filename().string()); });
}

// Documents of a text: each ends with the separator token, as in shards. They are gathered and encoded in parallel.
class TextTokens {
 public:
  TextTokens(const Tokenizer& tokenizer, const EvalDataConfig& config) : tokenizer_(tokenizer), config_(config) {}

  EvalText read() {
    std::string document;
    read_texts({config_.path}, config_.field, [&](const TextPiece& piece) {
      document += piece.text;
      if (!piece.last) return;
      split(document, piece.source->name);
      document.clear();
    });
    encode();
    if (tokens_.size() < 2) fail(Exit::data, "eval.data", config_.path, " is empty: nothing to evaluate");
    return {std::make_shared<MemoryTokens>(config_.path, std::move(tokens_), std::move(starts_)), std::move(files_)};
  }

 private:
  void split(std::string_view text, const std::string& file) {
    if (!config_.document_separator || config_.document_separator->empty()) return add(text, file);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t next = std::min(text.size(), text.find(*config_.document_separator, at + 1));
      add(text.substr(at, next - at), file);
      at = next;
    }
  }
  void add(std::string_view document, const std::string& file) {
    if (document.empty()) return;
    documents_.emplace_back(document);
    files_.push_back(file);
    bytes_ += document.size();
    if (bytes_ >= kBatchBytes) encode();
  }
  void encode() {
    std::vector<std::vector<std::int32_t>> ids(documents_.size());
    parallel_for(static_cast<std::int64_t>(ids.size()), 1, [&](std::int64_t begin, std::int64_t end) {
      for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
        tokenizer_.encode(documents_[i], ids[i]);
    });
    for (const std::vector<std::int32_t>& document : ids) {
      starts_.push_back(static_cast<std::int64_t>(tokens_.size()));
      tokens_.insert(tokens_.end(), document.begin(), document.end());
      if (tokenizer_.separator()) tokens_.push_back(*tokenizer_.separator());
    }
    documents_.clear();
    bytes_ = 0;
  }

  static constexpr std::size_t kBatchBytes = 16 << 20;
  const Tokenizer& tokenizer_;
  const EvalDataConfig& config_;
  std::vector<std::string> documents_;  // not encoded yet
  std::size_t bytes_ = 0;               // of them
  std::vector<std::int32_t> tokens_;
  std::vector<std::int64_t> starts_;
  std::vector<std::string> files_;
};

}  // namespace

EvalText open_eval_text(const EvalDataConfig& data, const Tokenizer& tokenizer) {
  if (is_shards(data.path)) return {std::make_shared<TokenStore>(data.path, &tokenizer), {}};
  return TextTokens(tokenizer, data).read();
}

const EvalText& EvalTexts::open(const EvalDataConfig& data, const std::vector<std::string>& trained,
                                const Tokenizer& tokenizer) {
  std::string key = cat(tokenizer.hash(), " ", tokenizer.separator().value_or(-1));
  const auto add = [&key](const std::string& part) { key += cat(" ", part.size(), ":", part); };
  if (data.path.empty()) {
    for (const std::string& path : trained) add(path);
  } else {
    for (const std::string& part : {data.path, data.field, data.document_separator.value_or("")}) add(part);
  }
  const auto found = texts_.find(key);
  if (found != texts_.end()) return found->second;
  EvalText text = data.path.empty() ? EvalText{std::make_shared<TokenStore>(trained, &tokenizer), {}}
                                    : open_eval_text(data, tokenizer);
  return texts_.emplace(key, std::move(text)).first->second;
}

std::string eval_data_name(const EvalDataConfig& data) {
  if (data.name) return *data.name;
  const std::filesystem::path path = std::filesystem::path(data.path).lexically_normal();
  const std::string stem = path.stem().string();
  // "data/wiki/val/*.h5" is called after its folder.
  return stem.empty() || stem.find_first_of("*?[") != std::string::npos ? path.parent_path().filename().string() : stem;
}

}  // namespace sieve
