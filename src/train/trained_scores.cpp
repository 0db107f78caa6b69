#include "train/trained_scores.h"

#include <algorithm>
#include <iostream>
#include <memory>

#include "attention/timestep_norm.h"
#include "autograd/mode.h"
#include "autograd/ops.h"
#include "data/token_store.h"
#include "io/safetensors.h"
#include "nn/attention_layer.h"
#include "train/bench_attention.h"
#include "train/checkpoint.h"
#include "train/compute.h"

namespace sieve {
namespace {

constexpr std::string_view kWhere = "bench scores";

Variable parameter(const Decoder& model, std::string_view name) {
  for (const ParameterPtr& p : model.parameters())
    if (p->name == name) return p->value;
  return {};
}

Variable embedded(const Decoder& model, const Tensor& tokens) {
  const Variable x = embedding(parameter(model, "embed.tokens.weight"), tokens.to(model.stream()));
  const Variable positions = parameter(model, "embed.positions.weight");
  return positions.defined() ? add(x, slice(positions, 0, 0, tokens.size(1))) : x;
}

// `rows` stretches of T tokens, evenly spread.
Tensor stretches(const TokenStore& store, std::int64_t rows, std::int64_t T) {
  if (store.tokens() < T)
    fail(Exit::data, kWhere, store.name(), " has ", store.tokens(), " tokens, fewer than --length ", T);
  Tensor tokens = empty({rows, T}, DType::i32);
  const std::int64_t last = store.tokens() - T;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t begin = rows == 1 ? 0 : last / (rows - 1) * r;
    store.read(begin, tokens.slice(0, r, r + 1).span<std::int32_t>());
  }
  return tokens;
}

}  // namespace

std::vector<Tensor> layer_scores(const Decoder& model, const Tensor& tokens) {
  const NoGrad no_grad;
  std::vector<Tensor> all;
  Variable x = embedded(model, tokens);
  for (const Block& block : model.blocks()) {
    const AttentionLayer* attention = block.attention();
    all.emplace_back();
    if (attention != nullptr && attention->has_scorer()) {
      Variable s = score(block.norm1()(x), attention->score_weight());
      if (attention->score_gain().defined()) s = timestep_norm(s, attention->score_gain(), {});
      all.back() = s.value().to(DType::f32).to(Stream{});
    }
    x = block(x, {}, {}, nullptr);
  }
  return all;
}

Exit write_trained_scores(const TrainedScoresOptions& options) {
  const Stream stream = compute_stream(resolve_device(device_from_name(options.device)), 0);
  const LoadedModel loaded = load_model(options.checkpoint);
  const Decoder& model = *loaded.model;
  place_parameters(model.parameters(), stream);
  const std::int64_t T = options.length.empty() ? loaded.config.data.seq_len : parse_length(options.length);
  if (model.config().arch == Arch::gpt2 && T > *model.config().max_seq)
    fail(Exit::config, kWhere, "--length ", T, " is longer than the ", *model.config().max_seq, " learned positions");
  const std::int64_t layers = model.config().n_layers;
  if (options.layer >= layers)
    fail(Exit::config, kWhere, "--layer ", options.layer, ": the model has ", layers, " layers");
  const TokenStore store(options.data, loaded.tokenizer.get());
  std::vector<Tensor> chosen;
  std::int64_t first = -1;
  const std::vector<Tensor> all = layer_scores(model, stretches(store, options.rows, T));
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const Tensor& s = all[static_cast<std::size_t>(layer)];
    if (!s.defined() || (options.layer >= 0 && layer != options.layer)) continue;
    if (first < 0) first = layer;
    chosen.push_back(s);
  }
  if (chosen.empty())
    fail(Exit::config, kWhere, options.layer < 0 ? "no layer" : cat("layer ", options.layer), " of ",
         loaded.path.string(), options.layer < 0 ? " selects keys" : " does not select keys");
  std::vector<float> values;
  for (std::int64_t b = 0; b < options.rows; ++b) {
    std::int64_t most = 0;
    for (const Tensor& s : chosen) most = std::max(most, s.size(1));
    for (std::int64_t h = 0; h < most; ++h) {
      for (const Tensor& s : chosen) {
        if (h >= s.size(1)) continue;
        const float* row = s.data<float>() + (b * s.size(1) + h) * T;
        values.insert(values.end(), row, row + T);
      }
    }
  }
  const std::int64_t rows = static_cast<std::int64_t>(values.size()) / T;
  write_safetensors(options.output, {{"scores", from_values<float>(values, {rows, T})}});
  const AttentionSpec& spec = model.blocks()[static_cast<std::size_t>(first)].attention()->spec();
  std::cout << options.output << ": " << rows << " rows of " << T << " scores from " << chosen.size()
            << (chosen.size() == 1 ? " layer" : " layers") << "\nas in layer " << first
            << ": sieve bench attention --scores " << options.output << " --k " << spec.sparsek.k << " --window "
            << spec.window << " --slope " << spec.sparsek.slope << " --pool " << spec.sparsek.pool << std::endl;
  return Exit::ok;
}

}  // namespace sieve
