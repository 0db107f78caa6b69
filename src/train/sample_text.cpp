#include "train/sample_text.h"

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "core/rng.h"
#include "nn/generation.h"
#include "tensor/runtime.h"

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

// The next token from the logits of the last one: into page-locked memory, then by the sampler of the CPU.
class Sampler {
 public:
  Sampler(const Decoder& model, std::int64_t vocab, const TextGeneration& options)
      : options_(options),
        random_{options.seed, options.stream},
        vocab_(static_cast<std::size_t>(std::min(vocab, *model.config().vocab_size))),
        logits_(model.stream().device.is_cuda() ? empty_pinned({1, *model.config().vocab_size}, DType::f32)
                                                : empty({1, *model.config().vocab_size}, DType::f32)) {}

  // Token n of the text.
  std::int32_t operator()(const Tensor& logits, std::int64_t n) {
    copy_bytes(logits_.raw(), Stream{}, logits.raw(), logits.stream(), logits.nbytes());
    synchronize(logits.stream());
    return sample_token(logits_.span<float>().first(vocab_), options_.sampling,
                        random_.uniform(static_cast<std::uint64_t>(n)));
  }
  std::size_t vocab() const { return vocab_; }  // rows that pad the vocabulary are no tokens

 private:
  const TextGeneration& options_;
  Philox random_;
  std::size_t vocab_;
  Tensor logits_;
};

// Tokens that a captured greedy generation makes before the host looks at them.
constexpr std::int64_t kBurst = 16;

}  // namespace

GeneratedText generate_text(const Decoder& model, const Tokenizer& tokenizer, std::string_view prompt,
                            const TextGeneration& options, const std::function<bool(std::string_view)>& emit) {
  GeneratedText out;
  out.prompt_ids = prompt_tokens(tokenizer, prompt);
  Utf8Stream utf8;
  bool wanted = true;
  const auto give = [&](const std::string& piece) {
    out.text += piece;
    if (emit) wanted = emit(piece);
  };

  Generation generation(model, 1, static_cast<std::int64_t>(out.prompt_ids.size()) + options.max_new_tokens);
  Sampler sample(model, tokenizer.vocab_size(), options);
  auto start = Clock::now();
  Tensor logits = generation.append(row_of(out.prompt_ids));
  std::vector<std::int32_t> ahead{sample(logits, 0)};  // chosen, not yet given out
  out.prefill_seconds = since(start);
  start = Clock::now();
  const bool bursts = generation.captured() && options.sampling.temperature <= 0;
  std::size_t at = 0;
  for (std::int64_t n = 0; wanted && n < options.max_new_tokens; ++n) {
    const std::int32_t id = ahead[at++];
    if (tokenizer.separator() == id) break;
    out.new_ids.push_back(id);
    give(utf8.push(tokenizer.token_bytes(id)));
    const std::int64_t left = options.max_new_tokens - n - 1;
    if (!wanted || left == 0 || at < ahead.size()) continue;
    at = 0;
    if (bursts) {
      const Tensor next =
          generation.continue_greedily(row_of({id}), std::min(left, kBurst), static_cast<std::int64_t>(sample.vocab()));
      ahead.assign(next.span<std::int32_t>().begin(), next.span<std::int32_t>().end());
    } else {
      logits = generation.append(row_of({id}));
      ahead.assign(1, sample(logits, n + 1));
    }
  }
  out.decode_seconds = since(start);
  if (wanted) give(utf8.finish());
  out.cache_rows = generation.cache_rows();
  out.cache_bytes = generation.cache_bytes();
  return out;
}

}  // namespace sieve
