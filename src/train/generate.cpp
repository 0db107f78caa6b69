// `sieve generate`: text from a checkpoint, streamed as it appears.
#include <iostream>

#include "io/json.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/compute.h"
#include "train/sample_text.h"

namespace sieve {
namespace {

double rate(std::size_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }

Json generation_json(const GeneratedText& out, const LoadedModel& model, const GenerateOptions& options) {
  return Json{{"checkpoint", model.path.string()},
              {"prompt", options.prompt},
              {"text", out.text},
              {"prompt_ids", out.prompt_ids},
              {"ids", out.new_ids},
              {"seed", options.seed},
              {"prefill_tok_s", rate(out.prompt_ids.size(), out.prefill_seconds)},
              {"decode_tok_s", rate(out.new_ids.size(), out.decode_seconds)},
              {"cache_rows", out.cache_rows},
              {"cache_bytes", out.cache_bytes}};
}

}  // namespace

Exit generate(const GenerateOptions& options) {
  if (options.temperature < 0) fail(Exit::config, "generate", "temperature ", options.temperature, " is negative");
  if (options.top_k < 0) fail(Exit::config, "generate", "top-k ", options.top_k, " is negative");
  if (!(options.top_p > 0 && options.top_p <= 1))
    fail(Exit::config, "generate", "top-p ", options.top_p, " is outside (0, 1]");
  if (options.max_new_tokens < 1)
    fail(Exit::config, "generate", "max-new-tokens ", options.max_new_tokens, " is below 1");
  const Stream stream = compute_stream(resolve_device(device_from_name(options.device)), 0);
  const LoadedModel model = load_model(options.checkpoint);
  place_parameters(model.model->parameters(), stream);
  const TextGeneration generation{
      .max_new_tokens = options.max_new_tokens,
      .sampling = {.temperature = options.temperature, .top_k = options.top_k, .top_p = options.top_p},
      .seed = options.seed,
      .stream = 0};
  if (!options.json) std::cout << options.prompt << std::flush;
  const GeneratedText out =
      generate_text(*model.model, *model.tokenizer, options.prompt, generation, [&](std::string_view piece) {
        if (!options.json) std::cout << piece << std::flush;
        return std::cout.good();
      });
  std::cout << (options.json ? json_text(generation_json(out, model, options)) : std::string()) << std::endl;
  return Exit::ok;
}

}  // namespace sieve
