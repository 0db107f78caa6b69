// `sieve generate`: text from a checkpoint, streamed as it appears.
#include <iostream>
#include <optional>

#include "io/json.h"
#include "train/checkpoint.h"
#include "train/commands.h"
#include "train/compute.h"
#include "train/sample_text.h"
#include "train/verify_text.h"

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

std::optional<DType> precision_of(const std::string& name) {
  if (name == "auto") return {};
  if (name == "fp32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  fail(Exit::config, "generate", "unknown precision \"", name, "\" (auto, fp32, bf16)");
}

Exit verified(const GeneratedText& out, const LoadedModel& model, Json& json) {
  const Verification v = verify_greedy(*model.model, out.prompt_ids, out.new_ids, model.tokenizer->vocab_size());
  json["verified"] = {{"checked", v.checked},         {"excused", v.excused},         {"wrong", v.wrong},
                      {"first_wrong", v.first_wrong}, {"largest_gap", v.largest_gap}, {"passed", v.passed()}};
  std::cerr << v.checked << " tokens against the full forward: " << v.wrong << " differ, " << v.excused
            << " more are ties within " << Verification::kTie << " (largest gap " << v.largest_gap << ")"
            << (v.wrong > 0 ? cat(", the first is new token ", v.first_wrong) : "") << "\n";
  return v.passed() ? Exit::ok : Exit::threshold;
}

}  // namespace

Exit generate(const GenerateOptions& options) {
  if (options.temperature < 0) fail(Exit::config, "generate", "temperature ", options.temperature, " is negative");
  if (options.top_k < 0) fail(Exit::config, "generate", "top-k ", options.top_k, " is negative");
  if (!(options.top_p > 0 && options.top_p <= 1))
    fail(Exit::config, "generate", "top-p ", options.top_p, " is outside (0, 1]");
  if (options.max_new_tokens < 1)
    fail(Exit::config, "generate", "max-new-tokens ", options.max_new_tokens, " is below 1");
  if (options.verify && options.temperature > 0)
    fail(Exit::config, "generate", "verify compares with the likeliest token: temperature 0, not ",
         options.temperature);
  const Stream stream = compute_stream(resolve_device(device_from_name(options.device)), 0);
  const LoadedModel model = load_model(options.checkpoint, precision_of(options.precision));
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
  Json json = generation_json(out, model, options);
  Exit code = Exit::ok;
  if (options.verify) {
    if (!options.json) std::cout << std::endl;
    code = verified(out, model, json);
  }
  std::cout << (options.json ? json_text(json) : std::string()) << std::endl;
  return code;
}

}  // namespace sieve
