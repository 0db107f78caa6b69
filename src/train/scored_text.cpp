#include "train/scored_text.h"

#include <algorithm>
#include <string>
#include <string_view>

namespace sieve {
namespace {

// Unicode's White_Space characters beyond ASCII, as UTF-8.
constexpr std::string_view kWideSpaces[] = {
    "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81", "\xE2\x80\x82", "\xE2\x80\x83",
    "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86", "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A",
    "\xE2\x80\xA8", "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};

bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f); }

// Words of a byte stream. Characters may be cut between calls, so bytes that may begin a wide space wait for the next
// ones; the word they may start was scored where they were.
class WordCounter {
 public:
  void text(std::string_view bytes, bool scored) {
    for (const char c : bytes) byte(c, scored);
  }
  void boundary() {
    flush_as_word();
    in_word_ = false;
  }
  std::int64_t finish() {
    flush_as_word();
    return words_;
  }

 private:
  void byte(char c, bool scored) {
    pending_ += c;
    if (pending_.size() == 1) pending_scored_ = scored;
    const auto starts = [this](std::string_view space) { return space.substr(0, pending_.size()) == pending_; };
    if (std::find(std::begin(kWideSpaces), std::end(kWideSpaces), pending_) != std::end(kWideSpaces)) {
      in_word_ = false;
      pending_.clear();
    } else if (!std::any_of(std::begin(kWideSpaces), std::end(kWideSpaces), starts)) {
      // Not a wide space: every byte but perhaps the last belongs to a word; the last may begin another character.
      pending_.pop_back();
      flush_as_word();
      plain(c, scored);
    }
  }
  void plain(char c, bool scored) {
    pending_ = c;
    pending_scored_ = scored;
    const auto starts = [this](std::string_view space) { return space.front() == pending_.front(); };
    if (std::any_of(std::begin(kWideSpaces), std::end(kWideSpaces), starts)) return;
    pending_.clear();
    if (is_ascii_space(c)) {
      in_word_ = false;
    } else {
      word(scored);
    }
  }
  void flush_as_word() {
    if (!pending_.empty()) word(pending_scored_);
    pending_.clear();
  }
  void word(bool scored) {
    if (!in_word_ && scored) ++words_;
    in_word_ = true;
  }

  std::string pending_;
  bool pending_scored_ = false, in_word_ = false;
  std::int64_t words_ = 0;
};

}  // namespace

TextCounts count_scored_text(const TokenSource& source, const Tokenizer& tokenizer,
                             const std::vector<EvalWindow>& windows) {
  TextCounts counts;
  WordCounter words;
  std::vector<std::int32_t> ids;
  std::int64_t at = 0;
  const auto feed = [&](std::int64_t end, bool scored) {
    constexpr std::int64_t kPiece = 1 << 16;
    while (at < end) {
      ids.resize(static_cast<std::size_t>(std::min(kPiece, end - at)));
      source.read(at, ids);
      at += static_cast<std::int64_t>(ids.size());
      for (const std::int32_t id : ids) {
        if (tokenizer.is_special(id)) {
          words.boundary();
          continue;
        }
        const std::string_view bytes = tokenizer.token_bytes(id);
        if (scored) counts.bytes += static_cast<std::int64_t>(bytes.size());
        words.text(bytes, scored);
      }
    }
  };
  for (const EvalWindow& w : windows) {
    feed(w.score_begin, false);
    feed(w.end, true);
  }
  counts.words = words.finish();
  return counts;
}

}  // namespace sieve
