// Cuts text into the pieces within which a BPE merges, by regular expressions (PCRE2 with UTF and Unicode properties).
// Every byte of the text is in exactly one piece. What a regex leaves between its matches is a piece too (Hugging
// Face's Split with behavior "Isolated").
//
// Agrees with Hugging Face's tokenizers on every character that PCRE2's Unicode tables know (version 14 in
// PCRE2 10.42); characters assigned later are neither letters nor numbers here.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

// GPT-2's split as published (openai/gpt-2, encoder.py).
inline constexpr std::string_view kGpt2Split =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class Pretokenizer {
 public:
  using PieceFn = std::function<void(std::string_view)>;

  // What one thread at a time needs for matching.
  class State {
   public:
    State();
    ~State();
    State(const State&) = delete;
    State& operator=(const State&) = delete;

   private:
    friend class Pretokenizer;
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };

  // Applied in order, each to the pieces of the one before; none: the text is one piece (per run of valid UTF-8).
  // Exit::data where a pattern does not compile or matches the empty string; `subject` names the file.
  Pretokenizer(const std::vector<std::string>& patterns, const std::string& subject);
  ~Pretokenizer();

  // Calls piece(...) for every piece, in order. Bytes that are not UTF-8 form pieces of their own.
  void split(State& state, std::string_view text, const PieceFn& piece) const;
  // The pieces at the start of `text` that no continuation of it can change; returns the bytes they cover.
  std::size_t split_prefix(State& state, std::string_view text, const PieceFn& piece) const;

 private:
  class Regex;
  std::size_t split_run(State& state, std::size_t level, std::string_view run, bool open, const PieceFn& piece) const;

  std::vector<std::unique_ptr<Regex>> levels_;
  bool prefix_safe_ = true;  // no pattern looks behind the start of its match
};

}  // namespace sieve
