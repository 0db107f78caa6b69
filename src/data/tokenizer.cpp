#include "data/tokenizer.h"

#include <filesystem>

#include "core/error.h"
#include "data/bpe_tokenizer.h"
#include "io/file.h"
#include "io/json.h"

namespace sieve {
namespace {

constexpr std::uint64_t kMaxTokenizerFile = 256ull << 20;

// The eos_token of tokenizer_config.json, a string or an object with the string as "content"; empty: none is named.
std::string configured_separator(const std::filesystem::path& tokenizer) {
  const auto path = tokenizer.parent_path() / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return {};
  const Json config = read_json(path);
  if (!config.is_object() || !config.contains("eos_token") || config["eos_token"].is_null()) return {};
  const Json& eos = config["eos_token"];
  if (eos.is_string()) return eos.get<std::string>();
  if (eos.is_object()) return get_json<std::string>(eos, "content", path.string());
  fail(Exit::data, "tokenizer", path.string(), ": eos_token must be a string, is ", eos.dump());
}

std::string bpe_name(const BpeModel& model) { return cat("bpe-", model.tokens.size()); }

}  // namespace

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string out;
  for (const std::int32_t id : ids) {
    if (!(skip_special && is_special(id))) out += token_bytes(id);
  }
  return out;
}

std::shared_ptr<const Tokenizer> make_byte_tokenizer() {
  BpeModel model;
  for (int b = 0; b < 256; ++b)
    model.tokens.push_back({std::string(1, static_cast<char>(b)), BpeModel::Kind::ordinary});
  model.tokens.push_back({"<|endoftext|>", BpeModel::Kind::special});
  model.separator = 256;
  return make_bpe_tokenizer(std::move(model), "byte", "byte tokenizer");
}

std::shared_ptr<const Tokenizer> parse_tokenizer_json(std::string_view json, const std::string& subject) {
  BpeModel model = read_tokenizer_json(json, subject);
  std::string name = bpe_name(model);
  return make_bpe_tokenizer(std::move(model), std::move(name), subject, std::string(json));
}

std::shared_ptr<const Tokenizer> load_tokenizer_json(const std::string& path) {
  std::string json = read_file(path, kMaxTokenizerFile);
  BpeModel model = read_tokenizer_json(json, path);
  if (const std::string separator = configured_separator(path); !separator.empty()) {
    model.separator.reset();
    for (std::size_t id = 0; id < model.tokens.size(); ++id) {
      if (model.tokens[id].kind == BpeModel::Kind::special && model.tokens[id].bytes == separator) {
        model.separator = static_cast<std::int32_t>(id);
      }
    }
    if (!model.separator) {
      fail(Exit::data, "tokenizer", path, ": the eos_token ", Json(separator).dump(),
           " of tokenizer_config.json is no special token of this file");
    }
  }
  std::string name = bpe_name(model);
  return make_bpe_tokenizer(std::move(model), std::move(name), path, std::move(json));
}

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& type, const std::string& path) {
  if (type == "byte") return make_byte_tokenizer();
  if (type != "hf_json") { fail(Exit::config, "tokenizer", "type \"", type, "\" is unknown (known: byte, hf_json)"); }
  if (path.empty()) fail(Exit::config, "tokenizer", "type hf_json needs the path of a tokenizer.json");
  const bool folder = std::filesystem::is_directory(path);
  return load_tokenizer_json(folder ? (std::filesystem::path(path) / "tokenizer.json").string() : path);
}

std::vector<std::int32_t> bytes_per_token(const Tokenizer& tokenizer) {
  std::vector<std::int32_t> out(static_cast<std::size_t>(tokenizer.vocab_size()), 0);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    if (tokenizer.has(id) && !tokenizer.is_special(id))
      out[i] = static_cast<std::int32_t>(tokenizer.token_bytes(id).size());
  }
  return out;
}

}  // namespace sieve
