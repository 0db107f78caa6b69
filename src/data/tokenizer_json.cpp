// tokenizer.json <-> BpeModel. Whatever this file does not know is refused by name: a tokenizer that is almost right
// gives a model that is quietly wrong.
#include <algorithm>
#include <initializer_list>
#include <unordered_map>

#include "core/log.h"
#include "data/bpe_model.h"
#include "data/pretokenizer.h"
#include "io/json.h"

namespace sieve {
namespace {

constexpr std::int64_t kMaxId = std::int64_t{1} << 24;  // an id sizes tables: bound it before use

class Parser {
 public:
  Parser(std::string_view text, const std::string& subject) : subject_(subject), root_(parse_json(text, subject)) {}

  BpeModel run() {
    if (!root_.is_object()) bad("not an object");
    const Json& model = member(root_, "model", "the file");
    read_added();
    read_vocabulary(member(model, "vocab", "model"));
    check_model(model);
    read_merges(member(model, "merges", "model"));
    read_normalizer();
    read_pre_tokenizer();
    check_post_processor(optional(root_, "post_processor"));
    check_decoder();
    for (const char* key : {"truncation", "padding"}) {
      if (!optional(root_, key).is_null()) log_warn(subject_, ": ", key, " is set in the file and not applied here");
    }
    model_.separator = model_.usual_separator();
    return std::move(model_);
  }

 private:
  template <class... Parts>
  [[noreturn]] void bad(const Parts&... parts) const {
    fail(Exit::data, "tokenizer", subject_, ": ", parts...);
  }
  const Json& member(const Json& object, const char* key, const char* where) const {
    if (!object.is_object() || !object.contains(key)) bad("key \"", key, "\" is missing in ", where);
    return object.at(key);
  }
  static const Json& optional(const Json& object, const char* key) {
    static const Json null;
    return object.is_object() && object.contains(key) ? object.at(key) : null;
  }
  std::string type_of(const Json& object, const char* what) const {
    const Json& type = optional(object, "type");
    if (!type.is_string()) bad(what, " has no type");
    return type.get<std::string>();
  }
  bool flag(const Json& object, const char* key, bool absent) const {
    const Json& value = optional(object, key);
    if (value.is_null()) return absent;
    if (!value.is_boolean()) bad("\"", key, "\" must be true or false, is ", value.dump());
    return value.get<bool>();
  }
  std::string text(const Json& value, const char* what) const {
    if (!value.is_string()) bad(what, " must be a string, is ", value.dump());
    return value.get<std::string>();
  }

  BpeModel::Token& token_at(const Json& id, const std::string& name) {
    if (!id.is_number_integer() || id < 0 || id >= kMaxId)
      bad("id of ", Json(name).dump(), " out of range: ", id.dump());
    const auto i = id.get<std::size_t>();
    if (i >= model_.tokens.size()) model_.tokens.resize(i + 1);
    return model_.tokens[i];
  }

  void read_added() {
    const Json& list = optional(root_, "added_tokens");
    if (list.is_null()) return;
    if (!list.is_array()) bad("added_tokens must be a list");
    for (const Json& entry : list) {
      const std::string content = text(member(entry, "content", "added_tokens"), "content of an added token");
      if (content.empty()) bad("added token with empty content");
      for (const char* key : {"single_word", "lstrip", "rstrip"}) {
        if (flag(entry, key, false)) bad("added token ", Json(content).dump(), ": ", key, ": true is not supported");
      }
      BpeModel::Token& token = token_at(member(entry, "id", "added_tokens"), content);
      if (token.kind != BpeModel::Kind::unused) bad("two added tokens with id ", entry.at("id").dump());
      token.bytes = content;
      token.kind = flag(entry, "special", false) ? BpeModel::Kind::special : BpeModel::Kind::added;
      token.normalized = flag(entry, "normalized", token.kind == BpeModel::Kind::added);
    }
  }

  void read_vocabulary(const Json& vocab) {
    if (!vocab.is_object()) bad("model.vocab must map tokens to ids");
    for (const auto& [name, id] : vocab.items()) {
      BpeModel::Token& token = token_at(id, name);
      if (token.kind == BpeModel::Kind::added || token.kind == BpeModel::Kind::special) {
        if (token.bytes != name) {
          bad("id ", id.dump(), " is ", Json(name).dump(), " in model.vocab and ", Json(token.bytes).dump(),
              " in added_tokens");
        }
      } else if (token.kind == BpeModel::Kind::ordinary) {
        bad("two tokens with id ", id.dump(), " in model.vocab, one is ", Json(name).dump());
      } else {
        const auto bytes = characters_to_bytes(name);
        if (!bytes || bytes->empty()) {
          bad("token ", Json(name).dump(), " is not written in the byte-level alphabet: not a byte-level BPE");
        }
        token.bytes = *bytes;
        token.kind = BpeModel::Kind::ordinary;
      }
      ids_.emplace(name, id.get<std::int32_t>());
    }
    if (ids_.empty()) bad("model.vocab is empty");
  }

  void check_model(const Json& model) {
    const Json& type = optional(model, "type");  // old files leave it out
    if (!type.is_null() && type != "BPE") bad("model type ", type.dump(), " is not supported (only \"BPE\")");
    const Json& dropout = optional(model, "dropout");
    if (!dropout.is_null() && dropout != 0) bad("model.dropout ", dropout.dump(), " is not supported");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json& value = optional(model, key);
      if (!value.is_null() && value != "") bad("model.", key, " ", value.dump(), " is not supported");
    }
    if (flag(model, "byte_fallback", false)) {
      bad("model.byte_fallback: true is not supported (a SentencePiece vocabulary, not byte-level)");
    }
    model_.ignore_merges = flag(model, "ignore_merges", false);
  }

  std::int32_t id_of(const std::string& name, std::size_t rank) const {
    const auto it = ids_.find(name);
    if (it == ids_.end()) bad("merge ", rank, ": ", Json(name).dump(), " is not in model.vocab");
    return it->second;
  }

  void read_merges(const Json& merges) {
    if (!merges.is_array()) bad("model.merges must be a list");
    for (const Json& entry : merges) {
      const std::size_t rank = model_.merges.size();
      std::string left, right;
      if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
        left = entry[0].get<std::string>();
        right = entry[1].get<std::string>();
      } else {
        const std::string both = text(entry, "a merge");
        const std::size_t space = both.find(' ');
        if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos) {
          bad("merge ", rank, ": ", entry.dump(), " is not two tokens with a space between");
        }
        left = both.substr(0, space);
        right = both.substr(space + 1);
      }
      model_.merges.push_back({id_of(left, rank), id_of(right, rank), id_of(left + right, rank)});
    }
  }

  void read_normalizer() {
    const Json& n = optional(root_, "normalizer");
    if (n.is_null()) return;
    const std::string type = type_of(n, "normalizer");
    if (type == "NFC") {
      model_.nfc = true;
    } else if (type == "Sequence") {
      for (const Json& part : member(n, "normalizers", "normalizer")) {
        const std::string inner = type_of(part, "normalizer");
        if (inner != "NFC") bad("normalizer type \"", inner, "\" is not supported (only NFC)");
        model_.nfc = true;
      }
    } else {
      bad("normalizer type \"", type, "\" is not supported (only NFC)");
    }
  }

  void read_pre_tokenizer() {
    const Json& p = optional(root_, "pre_tokenizer");
    if (p.is_null()) bad("no pre_tokenizer: a byte-level BPE has ByteLevel");
    std::vector<const Json*> parts;
    if (type_of(p, "pre_tokenizer") == "Sequence") {
      for (const Json& part : member(p, "pretokenizers", "pre_tokenizer")) parts.push_back(&part);
    } else {
      parts.push_back(&p);
    }
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const Json& part = *parts[i];
      const std::string type = type_of(part, "pre_tokenizer");
      const bool last = i + 1 == parts.size();
      if (type == "ByteLevel" && last) {
        if (flag(part, "add_prefix_space", true)) {
          bad("ByteLevel add_prefix_space: true is not supported (decoding would not give the text back)");
        }
        if (flag(part, "use_regex", true)) model_.splits.emplace_back(kGpt2Split);
      } else if (type == "Split" && !last) {
        read_split(part);
      } else if (type == "ByteLevel" || type == "Split") {
        bad("pre_tokenizer: ByteLevel must come last, once");
      } else {
        bad("pre_tokenizer type \"", type, "\" is not supported (only Split and ByteLevel)");
      }
    }
    if (parts.empty()) bad("pre_tokenizer: the Sequence is empty");
  }

  void read_split(const Json& split) {
    const Json& pattern = member(split, "pattern", "pre_tokenizer Split");
    if (!pattern.is_object() || pattern.size() != 1 || !pattern.contains("Regex")) {
      bad("pre_tokenizer Split: pattern ", pattern.dump(), " is not supported (only Regex)");
    }
    const Json& behavior = member(split, "behavior", "pre_tokenizer Split");
    if (behavior != "Isolated") {
      bad("pre_tokenizer Split: behavior ", behavior.dump(), " is not supported (only \"Isolated\")");
    }
    if (flag(split, "invert", false)) bad("pre_tokenizer Split: invert: true is not supported");
    model_.splits.push_back(text(pattern.at("Regex"), "the regex of a Split"));
  }

  // Post-processors add tokens around a text (a BOS); encode() never does, so they only have to be known.
  void check_post_processor(const Json& p) {
    if (p.is_null()) return;
    const std::string type = type_of(p, "post_processor");
    if (type == "Sequence") {
      for (const Json& part : member(p, "processors", "post_processor")) check_post_processor(part);
    } else if (type != "ByteLevel" && type != "TemplateProcessing") {
      bad("post_processor type \"", type, "\" is not supported (only ByteLevel and TemplateProcessing)");
    }
  }

  void check_decoder() {
    const Json& d = optional(root_, "decoder");
    if (d.is_null()) bad("no decoder: a byte-level BPE has ByteLevel");
    const std::string type = type_of(d, "decoder");
    if (type != "ByteLevel") bad("decoder type \"", type, "\" is not supported (only ByteLevel)");
  }

  std::string subject_;
  Json root_;
  BpeModel model_;
  std::unordered_map<std::string, std::int32_t> ids_;
};

using Ordered = nlohmann::ordered_json;  // keys in Hugging Face's order

Ordered byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Ordered pre_tokenizer_json(const BpeModel& model) {
  if (model.splits.empty()) return byte_level(false);
  if (model.splits.size() == 1 && model.splits.front() == kGpt2Split) return byte_level(true);
  Ordered parts = Ordered::array();
  for (const std::string& s : model.splits) {
    parts.push_back({{"type", "Split"}, {"pattern", {{"Regex", s}}}, {"behavior", "Isolated"}, {"invert", false}});
  }
  parts.push_back(byte_level(false));
  return {{"type", "Sequence"}, {"pretokenizers", parts}};
}

// `items` one a line, in `brackets`.
std::string block(const std::vector<std::string>& items, const char* brackets) {
  std::string out(1, brackets[0]);
  for (std::size_t i = 0; i < items.size(); ++i) out += (i ? ",\n      " : "\n      ") + items[i];
  return out + (items.empty() ? "" : "\n    ") + brackets[1];
}

}  // namespace

BpeModel read_tokenizer_json(std::string_view json, const std::string& subject) { return Parser(json, subject).run(); }

// By hand where the vocabulary is concerned: an ordered JSON object looks a key up by walking through all of them.
std::string write_tokenizer_json(const BpeModel& model) {
  auto quoted = [](const std::string& text) { return Ordered(text).dump(); };
  auto characters = [&](std::int32_t id) {
    return bytes_to_characters(model.tokens[static_cast<std::size_t>(id)].bytes);
  };
  std::vector<std::string> vocab, merges;
  Ordered added = Ordered::array();
  for (std::size_t id = 0; id < model.tokens.size(); ++id) {
    const BpeModel::Token& t = model.tokens[id];
    if (t.kind == BpeModel::Kind::ordinary) {
      vocab.push_back(cat(quoted(bytes_to_characters(t.bytes)), ": ", id));
    } else if (t.kind != BpeModel::Kind::unused) {
      added.push_back({{"id", id},
                       {"content", t.bytes},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", t.normalized},
                       {"special", t.kind == BpeModel::Kind::special}});
    }
  }
  for (const auto& m : model.merges) merges.push_back(quoted(characters(m.left) + ' ' + characters(m.right)));
  const Ordered normalizer = model.nfc ? Ordered{{"type", "NFC"}} : Ordered();
  return cat(
      "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": ", added.dump(),
      ",\n  \"normalizer\": ", normalizer.dump(), ",\n  \"pre_tokenizer\": ", pre_tokenizer_json(model).dump(),
      ",\n  \"post_processor\": ", byte_level(true).dump(), ",\n  \"decoder\": ", byte_level(true).dump(),
      ",\n  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
      "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
      "    \"byte_fallback\": false,\n    \"ignore_merges\": ",
      model.ignore_merges ? "true" : "false", ",\n    \"vocab\": ", block(vocab, "{}"),
      ",\n    \"merges\": ", block(merges, "[]"), "\n  }\n}\n");
}

}  // namespace sieve
