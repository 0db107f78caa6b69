#include "data/bpe_trainer.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <unordered_map>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "data/bpe_tokenizer.h"
#include "data/piecewise.h"
#include "data/pretokenizer.h"
#include "data/utf8.h"

namespace sieve {
namespace {

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
};
using Counts = std::unordered_map<std::string, std::int64_t, StringHash, std::equal_to<>>;

constexpr std::int64_t kEntryBytes = 64;  // of a pre-token beside its text: string, count, map node

// The merging phase. All distinct pre-tokens lie one after another in one array of symbols that are linked within each
// word, so that replacing a pair costs as much as it has occurrences, however long the words are.
class Merging {
 public:
  Merging(const Counts& counts, BpeModel& model) : model_(model) {
    for (std::size_t id = 0; id < model.tokens.size(); ++id) {
      ids_.emplace(model.tokens[id].bytes, static_cast<std::int32_t>(id));
    }
    lay_out(counts);
    for (std::size_t i = 0; i < symbols_.size(); ++i) {
      if (symbols_[i].next >= 0) change(i, symbols_[i].id, symbols_[static_cast<std::size_t>(symbols_[i].next)].id, +1);
    }
    touched_.clear();
    for (const auto& [pair, info] : pairs_) queue_.push({info.count, pair});
  }

  // Adds merges until `wanted` or until no pair is seen min_frequency times.
  void run(std::int64_t wanted, std::int64_t min_frequency, std::int64_t max_tokens,
           const BpeTrainer::Progress& progress) {
    while (static_cast<std::int64_t>(model_.tokens.size()) < max_tokens && !queue_.empty()) {
      const Entry top = queue_.top();
      queue_.pop();
      const auto it = pairs_.find(top.pair);
      if (it == pairs_.end()) continue;
      // Counts only fall behind the queue's back (a rise queues the pair anew), so a stale entry goes back with the
      // true count.
      if (it->second.count != top.count) {
        if (it->second.count < top.count && it->second.count > 0) queue_.push({it->second.count, top.pair});
        continue;
      }
      if (top.count < std::max<std::int64_t>(1, min_frequency)) break;
      merge(top.pair);
      const auto done = static_cast<std::int64_t>(model_.merges.size());
      if (progress && (done % 256 == 0 || done == wanted)) progress(done, wanted);
    }
  }

 private:
  using Pair = std::pair<std::int32_t, std::int32_t>;
  struct PairHash {
    std::size_t operator()(const Pair& p) const {
      const auto key = (static_cast<std::uint64_t>(static_cast<std::uint32_t>(p.first)) << 32) |
                       static_cast<std::uint32_t>(p.second);
      return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15ull) >> 17);
    }
  };
  struct Symbol {
    std::int32_t id;  // -1: swallowed by its left neighbour
    std::int32_t previous, next;
    std::int32_t word;
  };
  struct PairInfo {
    std::int64_t count = 0;
    std::vector<std::int32_t> places;  // of the left symbol; some may be out of date
  };
  struct Entry {
    std::int64_t count;
    Pair pair;
    bool operator<(const Entry& o) const { return count != o.count ? count < o.count : pair > o.pair; }
  };

  void lay_out(const Counts& counts) {
    // In the order of their bytes: a hash map's own order must not decide anything.
    std::vector<const Counts::value_type*> words;
    std::size_t bytes = 0;
    for (const auto& entry : counts) {
      words.push_back(&entry);
      bytes += entry.first.size();
    }
    if (bytes > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
      fail(Exit::data, "tokenizer", "distinct pre-tokens of ", bytes, " bytes exceed 2 GiB: lower max_unique_bytes");
    }
    std::sort(words.begin(), words.end(), [](const auto* a, const auto* b) { return a->first < b->first; });
    symbols_.reserve(bytes);
    for (const auto* entry : words) {
      const auto word = static_cast<std::int32_t>(word_counts_.size());
      word_counts_.push_back(entry->second);
      const auto begin = static_cast<std::int32_t>(symbols_.size());
      const auto end = begin + static_cast<std::int32_t>(entry->first.size());
      for (std::int32_t i = begin; i < end; ++i) {
        const std::string_view byte(entry->first.data() + (i - begin), 1);
        symbols_.push_back({ids_.find(byte)->second, i > begin ? i - 1 : -1, i + 1 < end ? i + 1 : -1, word});
      }
    }
  }

  // One occurrence of (left, right) more or less at symbol `place`.
  void change(std::size_t place, std::int32_t left, std::int32_t right, int sign) {
    const Pair pair{left, right};
    PairInfo& info = pairs_[pair];
    info.count += sign * word_counts_[static_cast<std::size_t>(symbols_[place].word)];
    if (sign > 0) {
      info.places.push_back(static_cast<std::int32_t>(place));
      touched_.push_back(pair);
    }
  }

  void merge(const Pair pair) {
    const auto result = token_for(pair);
    model_.merges.push_back({pair.first, pair.second, result});
    std::vector<std::int32_t> places = std::move(pairs_[pair].places);
    pairs_.erase(pair);
    // Left to right, so that of overlapping occurrences (aaa) the first is taken.
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    touched_.clear();
    for (const std::int32_t place : places) {
      Symbol& left = symbols_[static_cast<std::size_t>(place)];
      if (left.id != pair.first || left.next < 0) continue;
      Symbol& right = symbols_[static_cast<std::size_t>(left.next)];
      if (right.id != pair.second) continue;
      replace(place, left, right, result);
    }
    pairs_.erase(pair);  // neighbours of overlapping occurrences may have brought it back
    std::sort(touched_.begin(), touched_.end());
    touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
    for (const Pair& p : touched_) {
      const auto it = pairs_.find(p);
      if (it != pairs_.end() && it->second.count > 0) queue_.push({it->second.count, p});
    }
  }

  void replace(std::int32_t place, Symbol& left, Symbol& right, std::int32_t result) {
    const auto at = static_cast<std::size_t>(place);
    const std::int32_t before = left.previous, after = right.next;
    if (before >= 0)
      change(static_cast<std::size_t>(before), symbols_[static_cast<std::size_t>(before)].id, left.id, -1);
    if (after >= 0) change(at, right.id, symbols_[static_cast<std::size_t>(after)].id, -1);
    left.id = result;
    left.next = after;
    right.id = -1;
    if (after >= 0) symbols_[static_cast<std::size_t>(after)].previous = place;
    if (before >= 0)
      change(static_cast<std::size_t>(before), symbols_[static_cast<std::size_t>(before)].id, result, +1);
    if (after >= 0) change(at, result, symbols_[static_cast<std::size_t>(after)].id, +1);
  }

  // Two merges may spell the same token (a+bc, ab+c): it keeps one id.
  std::int32_t token_for(const Pair& pair) {
    std::string bytes = model_.tokens[static_cast<std::size_t>(pair.first)].bytes +
                        model_.tokens[static_cast<std::size_t>(pair.second)].bytes;
    const auto [it, added] = ids_.emplace(bytes, static_cast<std::int32_t>(model_.tokens.size()));
    if (added) model_.tokens.push_back({std::move(bytes), BpeModel::Kind::ordinary});
    return it->second;
  }

  BpeModel& model_;
  std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>> ids_;
  std::vector<Symbol> symbols_;
  std::vector<std::int64_t> word_counts_;
  std::unordered_map<Pair, PairInfo, PairHash> pairs_;
  std::vector<Pair> touched_;  // pairs that gained occurrences in the current merge
  std::priority_queue<Entry> queue_;
};

}  // namespace

struct BpeTrainer::State {
  BpeTrainOptions options;
  Pretokenizer pretokenizer{{std::string(kGpt2Split)}, "trainer"};
  Pretokenizer::State matching;
  Counts counts;
  std::int64_t memory = 0;  // of counts, estimated
  Piecewise document;
  BpeTrainReport report;
  bool used = false;

  void count(std::string_view piece) {
    auto it = counts.find(piece);
    if (it == counts.end()) {
      it = counts.emplace(std::string(piece), 0).first;
      memory += static_cast<std::int64_t>(piece.size()) + kEntryBytes;
    }
    ++it->second;
    if (memory > options.max_unique_bytes) prune();
  }

  // Drops the rarest pre-tokens until at most half of the memory is in use.
  void prune() {
    if (report.dropped_pretokens == 0) {
      log_warn("tokenizer training: distinct pre-tokens exceed ", options.max_unique_bytes,
               " bytes of memory; the rarest are dropped from now on");
    }
    for (std::int64_t rare = 1; memory > options.max_unique_bytes / 2; ++rare) {
      for (auto it = counts.begin(); it != counts.end();) {
        if (it->second > rare) {
          ++it;
          continue;
        }
        memory -= static_cast<std::int64_t>(it->first.size()) + kEntryBytes;
        ++report.dropped_pretokens;
        it = counts.erase(it);
      }
    }
  }
};

BpeTrainer::BpeTrainer(const BpeTrainOptions& options) : state_(std::make_unique<State>()) {
  if (options.vocab_size < 257 || options.vocab_size > (1 << 24)) {
    fail(Exit::config, "tokenizer", "vocab_size must be 257 (bytes and the separator) to ", 1 << 24, ", is ",
         options.vocab_size);
  }
  if (options.min_frequency < 1)
    fail(Exit::config, "tokenizer", "min_frequency must be at least 1, is ", options.min_frequency);
  if (options.separator.size() < 2 || valid_utf8_prefix(options.separator) != options.separator.size()) {
    fail(Exit::config, "tokenizer", "the separator must be UTF-8 of at least two bytes");
  }
  state_->options = options;
}
BpeTrainer::~BpeTrainer() = default;

void BpeTrainer::add(std::string_view document) { add_piece(document, true); }

void BpeTrainer::add_piece(std::string_view text, bool last) {
  State& s = *state_;
  s.report.text_bytes += static_cast<std::int64_t>(text.size());
  if (last) ++s.report.documents;
  const auto count = [&s](std::string_view piece) { s.count(piece); };
  s.document.add(text, last, [&](std::string_view all, bool whole) {
    if (!whole) return s.pretokenizer.split_prefix(s.matching, all, count);
    s.pretokenizer.split(s.matching, all, count);
    return all.size();
  });
}

std::shared_ptr<const Tokenizer> BpeTrainer::train(BpeTrainReport* report, const Progress& progress) {
  State& s = *state_;
  require(!s.used, "tokenizer", "train() may be called once");
  s.used = true;
  if (s.counts.empty()) fail(Exit::data, "tokenizer", "no text to train on: every document is empty");
  BpeModel model;
  // Ids of bytes in the order of their characters, as in GPT-2's vocabulary: '!' is 0.
  std::vector<int> bytes(256);
  for (int b = 0; b < 256; ++b) bytes[static_cast<std::size_t>(b)] = b;
  std::sort(bytes.begin(), bytes.end(), [](int a, int b) {
    return byte_characters()[static_cast<std::size_t>(a)] < byte_characters()[static_cast<std::size_t>(b)];
  });
  for (const int b : bytes) model.tokens.push_back({std::string(1, static_cast<char>(b)), BpeModel::Kind::ordinary});
  s.report.unique_pretokens = static_cast<std::int64_t>(s.counts.size());
  const std::int64_t wanted = s.options.vocab_size - 257;
  Merging(s.counts, model).run(wanted, s.options.min_frequency, s.options.vocab_size - 1, progress);
  s.counts.clear();
  s.report.merges = static_cast<std::int64_t>(model.merges.size());
  for (const auto& t : model.tokens) {
    if (t.bytes == s.options.separator) {
      fail(Exit::data, "tokenizer", "the text holds the separator ", s.options.separator,
           " so often that it became a token by itself: choose another separator");
    }
  }
  model.separator = static_cast<std::int32_t>(model.tokens.size());
  model.tokens.push_back({s.options.separator, BpeModel::Kind::special});
  model.splits = {std::string(kGpt2Split)};
  if (report) *report = s.report;
  std::string name = cat("bpe-", model.tokens.size());
  return make_bpe_tokenizer(std::move(model), std::move(name), "trained tokenizer");
}

}  // namespace sieve
