// Text from a model: prefill of the prompt, then one token at a time through the caches.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "nn/decoder.h"
#include "train/sampling.h"

namespace sieve {

struct TextGeneration {
  std::int64_t max_new_tokens = 128;
  SamplingConfig sampling;
  std::uint64_t seed = 0, stream = 0;  // token n of the text uses counter n of Philox{seed, stream}
};

struct GeneratedText {
  std::string text;  // of the new tokens, whole UTF-8 characters
  std::vector<std::int32_t> prompt_ids, new_ids;
  double prefill_seconds = 0, decode_seconds = 0;
  std::int64_t cache_rows = 0, cache_bytes = 0;
};

// Continues `prompt` (an empty one starts from the separator, as a new document does). Ends at the separator, after
// max_new_tokens, or when `emit` returns false; emit gets the text piece by piece. Prefill and decode agree in every
// position, so the text does not depend on how the prompt is cut. Error(Exit::config) where prompt and new tokens do
// not fit learned positions.
GeneratedText generate_text(const Decoder& model, const Tokenizer& tokenizer, std::string_view prompt,
                            const TextGeneration& options, const std::function<bool(std::string_view)>& emit);

}  // namespace sieve
