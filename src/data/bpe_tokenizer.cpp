#include "data/bpe_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>
#include <unordered_map>

#include "core/error.h"
#include "data/bpe_merger.h"
#include "data/piece_cache.h"
#include "data/pretokenizer.h"
#include "data/utf8.h"
#include "io/file.h"

namespace sieve {
namespace {

using Ids = std::vector<std::int32_t>;

// Finds the texts of added tokens: leftmost, and the longest of those that start at one place.
class AddedTokens {
 public:
  void add(std::string_view text, std::int32_t id) {
    auto& list = by_first_[static_cast<unsigned char>(text[0])];
    list.push_back({text, id});
    std::stable_sort(list.begin(), list.end(),
                     [](const Entry& a, const Entry& b) { return a.text.size() > b.text.size(); });
    empty_ = false;
  }
  bool empty() const { return empty_; }

  // gap(text) for what lies between, token(id) for each that is found, in order.
  template <class Gap, class Found>
  void each(std::string_view text, const Gap& gap, const Found& found) const {
    std::size_t begin = 0;
    for (std::size_t i = 0; !empty_ && i < text.size();) {
      const Entry* hit = nullptr;
      for (const Entry& e : by_first_[static_cast<unsigned char>(text[i])]) {
        if (text.substr(i, e.text.size()) == e.text) {
          hit = &e;
          break;
        }
      }
      if (!hit) {
        ++i;
        continue;
      }
      if (i > begin) gap(text.substr(begin, i - begin));
      found(hit->id);
      begin = i += hit->text.size();
    }
    if (begin < text.size()) gap(text.substr(begin));
  }

 private:
  struct Entry {
    std::string_view text;
    std::int32_t id;
  };
  std::array<std::vector<Entry>, 256> by_first_;
  bool empty_ = true;
};

void append_nfc(std::string_view valid, std::string& out) {
  if (std::all_of(valid.begin(), valid.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; })) {
    out += valid;
    return;
  }
  utf8proc_uint8_t* buffer = nullptr;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const utf8proc_ssize_t n = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(valid.data()),
                                          static_cast<utf8proc_ssize_t>(valid.size()), &buffer, options);
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(buffer, &std::free);
  if (n < 0) fail(Exit::data, "tokenizer", "NFC: ", utf8proc_errmsg(n));
  out.append(reinterpret_cast<const char*>(buffer), static_cast<std::size_t>(n));
}

std::string to_nfc(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t valid = valid_utf8_prefix(text);
    append_nfc(text.substr(0, valid), out);
    text.remove_prefix(valid);
    const std::size_t invalid = invalid_utf8_prefix(text);
    out += text.substr(0, invalid);
    text.remove_prefix(invalid);
  }
  return out;
}

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(BpeModel model, std::string name, std::string subject, std::string json)
      : model_(std::move(model)),
        name_(std::move(name)),
        subject_(std::move(subject)),
        json_(std::move(json)),
        hash_(model_.hash()),
        pretokenizer_(model_.splits, subject_),
        merger_(model_, subject_) {
    for (std::size_t i = 0; i < model_.tokens.size(); ++i) {
      const BpeModel::Token& t = model_.tokens[i];
      const auto id = static_cast<std::int32_t>(i);
      if (t.kind == BpeModel::Kind::unused) continue;
      if (t.kind == BpeModel::Kind::ordinary) {
        ordinary_.emplace(t.bytes, id);
        continue;
      }
      added_.emplace(t.bytes, id);
      matchers_[t.normalized][1].add(t.bytes, id);
      if (t.kind == BpeModel::Kind::added) matchers_[t.normalized][0].add(t.bytes, id);
    }
    // A split into single bytes does not care where the text is cut.
    bytes_only_ = model_.merges.empty() && !model_.ignore_merges;
    streams_ = !model_.nfc && matchers_[0][0].empty() && matchers_[1][0].empty();
  }

  std::string name() const override { return name_; }
  std::int64_t vocab_size() const override { return static_cast<std::int64_t>(model_.tokens.size()); }
  std::uint64_t hash() const override { return hash_; }
  std::optional<std::int32_t> separator() const override { return model_.separator; }
  std::optional<std::int32_t> id_of(std::string_view bytes) const override {
    for (const auto* map : {&added_, &ordinary_}) {
      if (const auto it = map->find(bytes); it != map->end()) return it->second;
    }
    return std::nullopt;
  }
  bool has(std::int32_t id) const override {
    return id >= 0 && id < vocab_size() && model_.tokens[static_cast<std::size_t>(id)].kind != BpeModel::Kind::unused;
  }
  bool is_special(std::int32_t id) const override { return token(id).kind == BpeModel::Kind::special; }
  std::string_view token_bytes(std::int32_t id) const override { return token(id).bytes; }

  void encode(std::string_view text, Ids& out, Special special) const override {
    const Lease scratch(*this);
    const int parse = special == Special::parse ? 1 : 0;
    auto emit = [&](std::int32_t id) { out.push_back(id); };
    auto plain = [&](std::string_view part) { encode_plain(part, *scratch, out); };
    auto normalized = [&](std::string_view part) {
      if (!model_.nfc) return matchers_[1][parse].each(part, plain, emit);
      const std::string nfc = to_nfc(part);
      matchers_[1][parse].each(nfc, plain, emit);
    };
    matchers_[0][parse].each(text, normalized, emit);
  }

  std::size_t encode_prefix(std::string_view text, Ids& out) const override {
    if (!streams_) return 0;
    const Lease scratch(*this);
    if (bytes_only_) {
      encode_plain(text, *scratch, out);
      return text.size();
    }
    return pretokenizer_.split_prefix(scratch->pretokenizer, text,
                                      [&](std::string_view piece) { encode_piece(piece, *scratch, out); });
  }

  void save(const std::string& path) const override {
    write_file_atomic(path, json_.empty() ? write_tokenizer_json(model_) : json_);
  }

 private:
  struct Scratch {
    Pretokenizer::State pretokenizer;
    BpeMerger::Scratch merger;
    PieceCache cache;
  };
  // Scratch memory for one call: taken from those not in use, so that concurrent calls have one each and a later call
  // finds the cache warm.
  class Lease {
   public:
    explicit Lease(const BpeTokenizer& owner) : owner_(owner) {
      {
        const std::lock_guard lock(owner.mutex_);
        if (!owner.idle_.empty()) {
          scratch_ = std::move(owner.idle_.back());
          owner.idle_.pop_back();
        }
      }
      if (!scratch_) scratch_ = std::make_unique<Scratch>();
    }
    ~Lease() {
      const std::lock_guard lock(owner_.mutex_);
      owner_.idle_.push_back(std::move(scratch_));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Scratch& operator*() const { return *scratch_; }
    Scratch* operator->() const { return scratch_.get(); }

   private:
    const BpeTokenizer& owner_;
    std::unique_ptr<Scratch> scratch_;
  };

  const BpeModel::Token& token(std::int32_t id) const {
    if (!has(id)) {
      fail(Exit::data, "tokenizer", subject_, ": no token has id ", id, " (vocabulary of ", vocab_size(), ")");
    }
    return model_.tokens[static_cast<std::size_t>(id)];
  }

  void encode_plain(std::string_view text, Scratch& scratch, Ids& out) const {
    if (bytes_only_) {
      merger_.bytes(text, out);
      return;
    }
    pretokenizer_.split(scratch.pretokenizer, text, [&](std::string_view piece) { encode_piece(piece, scratch, out); });
  }

  void encode_piece(std::string_view piece, Scratch& scratch, Ids& out) const {
    if (scratch.cache.get(piece, out)) return;
    const std::size_t begin = out.size();
    const auto whole = model_.ignore_merges ? ordinary_.find(piece) : ordinary_.end();
    if (whole != ordinary_.end()) {
      out.push_back(whole->second);
    } else {
      merger_.merge(piece, scratch.merger, out);
    }
    scratch.cache.put(piece, std::span(out).subspan(begin));
  }

  BpeModel model_;
  std::string name_, subject_, json_;
  std::uint64_t hash_;
  Pretokenizer pretokenizer_;
  BpeMerger merger_;
  std::unordered_map<std::string_view, std::int32_t> ordinary_, added_;  // views into model_
  AddedTokens matchers_[2][2];                                           // [normalized][special ones included]
  bool bytes_only_ = false, streams_ = false;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> idle_;
};

}  // namespace

std::shared_ptr<const Tokenizer> make_bpe_tokenizer(BpeModel model, std::string name, std::string subject,
                                                    std::string json) {
  return std::make_shared<BpeTokenizer>(std::move(model), std::move(name), std::move(subject), std::move(json));
}

}  // namespace sieve
