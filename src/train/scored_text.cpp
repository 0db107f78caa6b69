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

// Bytes that begin one of them. All are lead bytes of UTF-8 and occur nowhere else in these, so what a counter makes of
// a byte depends on at most the two before it.
bool begins_wide_space(char c) { return c == '\xC2' || (c >= '\xE1' && c <= '\xE3'); }

bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f); }

// Words of a byte stream. Characters may be cut between calls, so bytes that may begin a wide space wait for the next
// ones; the word they may start was scored where they were.
class WordCounter {
 public:
  void text(std::string_view bytes, bool scored) {
    for (const char c : bytes) {
      if (pending_.empty()) {
        plain(c, scored);
      } else {
        pend(c, scored);
      }
    }
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
  // The bytes that wait, and one more.
  void pend(char c, bool scored) {
    pending_ += c;
    const auto starts = [this](std::string_view space) { return space.starts_with(pending_); };
    if (std::find(std::begin(kWideSpaces), std::end(kWideSpaces), pending_) != std::end(kWideSpaces)) {
      in_word_ = false;
      pending_.clear();
    } else if (!std::any_of(std::begin(kWideSpaces), std::end(kWideSpaces), starts)) {
      // Not a wide space: every byte but perhaps the last belongs to a word; the last may begin another character.
      flush_as_word();
      plain(c, scored);
    }
  }
  void plain(char c, bool scored) {
    if (begins_wide_space(c)) {
      pending_ = c;
      pending_scored_ = scored;
    } else if (is_ascii_space(c)) {
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

// Tokens of a text -> counts.
class TextCounter {
 public:
  TextCounter(const TokenSource& source, const Tokenizer& tokenizer) : source_(source), tokenizer_(tokenizer) {}

  void read(std::int64_t begin, std::int64_t end, bool scored) {
    constexpr std::int64_t kPiece = 1 << 16;
    for (std::int64_t at = begin; at < end; at += kPiece) {
      ids_.resize(static_cast<std::size_t>(std::min(kPiece, end - at)));
      source_.read(at, ids_);
      for (const std::int32_t id : ids_) token(id, scored);
    }
  }
  // What is not scored counts by the word that it may end or begin: of a long piece only the ends are read. Each of
  // their tokens is a byte at least, or ends a word.
  void skip(std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t kEnds = 8;
    read(begin, std::min(begin + kEnds, end), false);
    read(std::max(begin + kEnds, end - kEnds), end, false);
  }
  TextCounts finish() { return {words_.finish(), bytes_}; }

 private:
  void token(std::int32_t id, bool scored) {
    if (tokenizer_.is_special(id)) return words_.boundary();
    const std::string_view bytes = tokenizer_.token_bytes(id);
    if (scored) bytes_ += static_cast<std::int64_t>(bytes.size());
    words_.text(bytes, scored);
  }

  const TokenSource& source_;
  const Tokenizer& tokenizer_;
  WordCounter words_;
  std::int64_t bytes_ = 0;
  std::vector<std::int32_t> ids_;
};

}  // namespace

TextCounts count_scored_text(const TokenSource& source, const Tokenizer& tokenizer,
                             const std::vector<EvalWindow>& windows) {
  TextCounter counter(source, tokenizer);
  std::int64_t at = 0;
  for (const EvalWindow& w : windows) {
    counter.skip(at, w.score_begin);
    counter.read(w.score_begin, w.end, true);
    at = w.end;
  }
  return counter.finish();
}

}  // namespace sieve
