#include "data/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>

#include "core/error.h"
#include "data/utf8.h"

namespace sieve {
namespace {

// Hugging Face's \s is Unicode's White_Space. PCRE2's also takes U+180E, which lost that property in Unicode 6.3.
constexpr std::string_view kSpaceClass = R"(\t-\r\x{85}\p{Z})";

// Spells out \s and \S so that they mean White_Space; inside a class \S cannot be written this way and stays as it is.
// Refuses what Oniguruma (Hugging Face's engine) reads in another way than PCRE2: nested classes and intersections.
std::string with_unicode_space(std::string_view pattern, const std::string& subject) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const char next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (c == '\\' && next == 's') {
      out += in_class ? std::string(kSpaceClass) : cat('[', kSpaceClass, ']');
      ++i;
    } else if (c == '\\' && next == 'S' && !in_class) {
      out += cat("[^", kSpaceClass, ']');
      ++i;
    } else if (c == '\\' && next != '\0') {
      out += {c, next};
      ++i;
    } else if (in_class && (c == '[' || (c == '&' && next == '&'))) {
      fail(Exit::data, "tokenizer", subject, ": split regex ", pattern, ": nested classes and && are not supported");
    } else if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      if (next == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') out += pattern[++i];  // first in a class: a literal
    } else {
      if (c == ']') in_class = false;
      out += c;
    }
  }
  return out;
}

std::string message_of(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct Pretokenizer::State::Impl {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 8 << 20, nullptr);
  Impl() {
    if (!match || !context) fail(Exit::memory, "tokenizer", "no memory for matching");
    if (stack) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Impl() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
};

Pretokenizer::State::State() : impl_(std::make_unique<Impl>()) {}
Pretokenizer::State::~State() = default;

class Pretokenizer::Regex {
 public:
  Regex(const std::string& pattern, const std::string& subject) : pattern_(pattern), subject_(subject) {
    const std::string source = with_unicode_space(pattern, subject);
    int code = 0;
    PCRE2_SIZE where = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), PCRE2_UTF | PCRE2_UCP, &code,
                          &where, nullptr);
    if (!code_) fail(Exit::data, "tokenizer", subject, ": split regex ", pattern, ": ", message_of(code));
    std::uint32_t may_match_empty = 0, behind = 0;
    pcre2_pattern_info(code_, PCRE2_INFO_MATCHEMPTY, &may_match_empty);
    pcre2_pattern_info(code_, PCRE2_INFO_MAXLOOKBEHIND, &behind);
    looks_behind_ = behind > 0;
    if (may_match_empty) {
      pcre2_code_free(code_);
      fail(Exit::data, "tokenizer", subject, ": split regex ", pattern, " matches the empty string");
    }
    // Without just-in-time compilation (some hardened kernels) the interpreter matches the same, only slower.
    pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE | PCRE2_JIT_PARTIAL_HARD);
  }
  ~Regex() { pcre2_code_free(code_); }
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  bool looks_behind() const { return looks_behind_; }

  enum class Found : std::uint8_t { match, partial, none };
  // The next match at or after `from`. `open`: more text may follow, and a match that could depend on it is `partial`.
  Found find(State& state, std::string_view text, std::size_t from, bool open, std::size_t& begin,
             std::size_t& end) const {
    State::Impl& s = *state.impl_;
    const std::uint32_t options = PCRE2_NO_UTF_CHECK | (open ? PCRE2_PARTIAL_HARD : 0);
    const int rc =
        pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, options, s.match, s.context);
    if (rc == PCRE2_ERROR_NOMATCH) return Found::none;
    if (rc == PCRE2_ERROR_PARTIAL) return Found::partial;
    if (rc < 0) fail(Exit::data, "tokenizer", subject_, ": split regex ", pattern_, ": ", message_of(rc));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(s.match);
    begin = ends[0];
    end = ends[1];
    return Found::match;
  }

 private:
  std::string pattern_, subject_;
  pcre2_code* code_ = nullptr;
  bool looks_behind_ = false;
};

Pretokenizer::Pretokenizer(const std::vector<std::string>& patterns, const std::string& subject) {
  for (const std::string& p : patterns) {
    levels_.push_back(std::make_unique<Regex>(p, subject));
    prefix_safe_ = prefix_safe_ && !levels_.back()->looks_behind();
  }
}
Pretokenizer::~Pretokenizer() = default;

// Pieces of a run of valid UTF-8 from level `level` on. Returns the bytes covered: all of them unless `open`.
std::size_t Pretokenizer::split_run(State& state, std::size_t level, std::string_view run, bool open,
                                    const PieceFn& piece) const {
  if (level == levels_.size()) {
    if (open) return 0;
    if (!run.empty()) piece(run);
    return run.size();
  }
  std::size_t done = 0, begin = 0, end = 0;
  while (done < run.size()) {
    const auto found = levels_[level]->find(state, run, done, open, begin, end);
    if (found != Regex::Found::match) {
      if (open) return done;
      begin = end = run.size();
    }
    if (begin > done) split_run(state, level + 1, run.substr(done, begin - done), false, piece);
    if (end > begin) split_run(state, level + 1, run.substr(begin, end - begin), false, piece);
    done = end;
  }
  return done;
}

void Pretokenizer::split(State& state, std::string_view text, const PieceFn& piece) const {
  while (!text.empty()) {
    const std::size_t valid = valid_utf8_prefix(text);
    split_run(state, 0, text.substr(0, valid), false, piece);
    text.remove_prefix(valid);
    const std::size_t invalid = invalid_utf8_prefix(text);
    if (invalid > 0) piece(text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
}

std::size_t Pretokenizer::split_prefix(State& state, std::string_view text, const PieceFn& piece) const {
  if (!prefix_safe_) return 0;
  std::size_t done = 0;
  while (done < text.size()) {
    const std::string_view rest = text.substr(done);
    const std::size_t valid = valid_utf8_prefix(rest);
    const bool open = utf8_may_continue(rest.substr(valid));  // also where nothing is left
    done += split_run(state, 0, rest.substr(0, valid), open, piece);
    if (open) break;
    // An invalid run is one piece, so it is certain only once a valid sequence follows it.
    const std::size_t invalid = invalid_utf8_prefix(rest.substr(valid));
    if (valid + invalid == rest.size()) break;
    piece(rest.substr(valid, invalid));
    done += invalid;
  }
  return done;
}

}  // namespace sieve
