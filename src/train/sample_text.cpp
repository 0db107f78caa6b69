#include "train/sample_text.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "core/rng.h"

namespace sieve {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Tensor row_of(const std::vector<std::int32_t>& ids) {
  return from_values<std::int32_t>(ids, {1, static_cast<std::int64_t>(ids.size())});
}

std::vector<std::int32_t> prompt_tokens(const Tokenizer& tokenizer, std::string_view prompt) {
  std::vector<std::int32_t> ids = tokenizer.encode(prompt, Special::parse);
  if (!ids.empty()) return ids;
  if (!tokenizer.separator())
    fail(Exit::config, "generate", "an empty prompt needs a tokenizer with an end-of-text token; give a prompt");
  return {*tokenizer.separator()};
}

}  // namespace

GeneratedText generate_text(const Decoder& model, const Tokenizer& tokenizer, std::string_view prompt,
                            const TextGeneration& options, const std::function<bool(std::string_view)>& emit) {
  GeneratedText out;
  out.prompt_ids = prompt_tokens(tokenizer, prompt);
  const Philox random{options.seed, options.stream};
  Utf8Stream utf8;
  bool wanted = true;
  const auto give = [&](const std::string& piece) {
    out.text += piece;
    if (emit) wanted = emit(piece);
  };

  Generation generation(model, 1, static_cast<std::int64_t>(out.prompt_ids.size()) + options.max_new_tokens);
  auto start = Clock::now();
  Tensor logits = generation.append(row_of(out.prompt_ids)).to(Stream{});
  out.prefill_seconds = since(start);
  start = Clock::now();
  // Rows that pad the vocabulary are no tokens.
  const auto tokens = static_cast<std::size_t>(std::min(tokenizer.vocab_size(), logits.size(1)));
  for (std::int64_t n = 0; wanted && n < options.max_new_tokens; ++n) {
    const auto id = sample_token(logits.span<float>().first(tokens), options.sampling,
                                 random.uniform(static_cast<std::uint64_t>(n)));
    if (tokenizer.separator() == id) break;
    out.new_ids.push_back(id);
    give(utf8.push(tokenizer.token_bytes(id)));
    if (wanted && n + 1 < options.max_new_tokens) logits = generation.append(row_of({id})).to(Stream{});
  }
  out.decode_seconds = since(start);
  if (wanted) give(utf8.finish());
  out.cache_rows = generation.cache_rows();
  out.cache_bytes = generation.cache_bytes();
  return out;
}

}  // namespace sieve
