#include "nn/model_config.h"

#include <cmath>

#include "core/error.h"
#include "core/rng.h"

namespace sieve {

void ScoreConfig::fields(FieldVisitor& v) {
  v.choice({"per", "one scoring vector per key-value head, or one per layer shared by its heads"}, kScorePerNames, per);
  v.real({.name = "slope",
          .doc = "position slope added to the scores per token; auto = 1 / data.seq_len of pretraining",
          .min = 0},
         slope);
  v.choice({"norm", "normalisation of the scores by running statistics frozen at each token (timestep), or none"},
           kScoreNormNames, norm);
  v.real({.name = "temperature", .doc = "the operator sees score / temperature", .min = 1e-6}, temperature);
  v.real({.name = "init_std",
          .doc = "standard deviation of the scorer's initial weights; auto = 0.55 / sqrt(d_model)",
          .min = 0},
         init_std);
}

void AttentionConfig::fields(FieldVisitor& v) {
  v.table({"kinds", "attention recipes by name"}, kinds);
  v.texts({"pattern", "names of kinds, cycled over the layers"}, pattern);
  v.boolean({"document_mask", "tokens see their own document only, and the selection restarts with each document"},
            document_mask);
}

void RopeConfig::fields(FieldVisitor& v) {
  v.real({.name = "theta", .doc = "base of the rotary frequencies", .min = 1}, theta);
  v.real({.name = "partial", .doc = "share of each head's dimensions that rotate", .min = 0, .max = 1}, partial);
}

void InitConfig::fields(FieldVisitor& v) {
  v.real({.name = "std", .doc = "standard deviation of initial weights", .min = 0}, std);
  v.boolean({"scale_residual", "divide it by sqrt(2 n_layers) for projections into the residual stream"},
            scale_residual);
}

void ModelConfig::fields(FieldVisitor& v) {
  v.choice(
      {"arch",
       "block recipe: gpt2 (LayerNorm, GELU, learned positions, biases) or llama (RMSNorm, SwiGLU, rotary, no biases)"},
      kArchNames, arch);
  v.integer({.name = "n_layers", .doc = "number of blocks", .min = 1}, n_layers);
  v.integer({.name = "d_model", .doc = "width of the residual stream", .min = 1}, d_model);
  v.integer({.name = "n_heads", .doc = "query heads", .min = 1}, n_heads);
  v.integer({.name = "n_kv_heads", .doc = "key-value heads; auto = n_heads", .min = 1}, n_kv_heads);
  v.integer({.name = "head_dim", .doc = "features per head; auto = d_model / n_heads", .min = 1}, head_dim);
  v.integer({.name = "d_ff",
             .doc = "hidden width of the MLP; auto = 4 d_model (gpt2), 8/3 d_model rounded up to 64 (llama)",
             .min = 1},
            d_ff);
  v.integer({.name = "max_seq",
             .doc = "longest sequence; bounds the learned positions of gpt2; auto = data.seq_len",
             .min = 1},
            max_seq);
  v.integer({.name = "vocab_size", .doc = "rows of the embedding; auto = the tokenizer's vocabulary", .min = 1},
            vocab_size);
  v.real({.name = "norm_eps", .doc = "epsilon of the norms", .min = 0}, norm_eps);
  v.boolean({"tie_embeddings", "the output head is the token embedding; auto = true"}, tie_embeddings);
  v.group({"rope", "rotary positions (llama)"}, rope);
  v.group({"attention", "which keys each layer's queries see"}, attention);
  v.group({"init", "initial weights"}, init);
}

void ModelConfig::resolve(std::int64_t tokenizer_vocab, std::int64_t seq_len, std::int64_t seed) {
  if (!n_kv_heads) n_kv_heads = n_heads;
  if (!head_dim) head_dim = d_model / n_heads;
  if (!d_ff) d_ff = arch == Arch::gpt2 ? 4 * d_model : ((8 * d_model + 2) / 3 + 63) / 64 * 64;
  if (!max_seq) max_seq = seq_len;
  if (!vocab_size) vocab_size = tokenizer_vocab;
  if (!tie_embeddings) tie_embeddings = true;
  if (attention.kinds.empty()) attention.kinds["full"] = {};
  if (attention.pattern.empty()) attention.pattern = {attention.kinds.begin()->first};
  for (auto& [name, kind] : attention.kinds) {
    if (!kind.score.slope) kind.score.slope = 1.0 / static_cast<double>(seq_len);
    if (!kind.score.init_std) kind.score.init_std = 0.55 / std::sqrt(static_cast<double>(d_model));
    if (!kind.clamp_distance) kind.clamp_distance = std::max<std::int64_t>(1, kind.window);
    if (!kind.seed && kind.type == AttentionKind::random_rows) kind.seed = seed;
  }
}

void ModelConfig::check(std::int64_t seq_len,
                        const std::function<void(const std::string&, const std::string&)>& report) const {
  const std::int64_t kv = n_kv_heads.value_or(n_heads), dim = head_dim.value_or(d_model / n_heads);
  const bool whole_heads = head_dim || d_model % n_heads == 0;
  if (!whole_heads)
    report("n_heads", cat(n_heads, " heads do not divide d_model = ", d_model, "; set head_dim, or a divisor"));
  if (n_heads % kv != 0) report("n_kv_heads", cat(kv, " key-value heads do not divide n_heads = ", n_heads));
  const auto rotated = static_cast<std::int64_t>(static_cast<double>(dim) * rope.partial);
  if (arch == Arch::llama && whole_heads && rotated % 2 != 0)
    report("rope.partial", cat("rotates ", rotated, " of ", dim, " dimensions; the number must be even"));
  if (max_seq && *max_seq < seq_len) report("max_seq", cat(*max_seq, " is shorter than data.seq_len = ", seq_len));
  for (const auto& [name, kind] : attention.kinds) {
    const std::string path = "attention.kinds." + name;
    check_kind(kind, seq_len, dim,
               [&](const std::string& key, const std::string& problem) { report(path + "." + key, problem); });
  }
  for (const auto& name : attention.pattern) {
    if (attention.kinds.count(name) && attention.kinds.at(name).type == AttentionKind::gla && n_heads % 2 != 0)
      report("n_heads", cat(n_heads, " is odd: type gla has half as many heads"));
    if (!attention.kinds.count(name))
      report("attention.pattern", cat("names \"", name, "\", which attention.kinds does not define"));
  }
  const auto entries = static_cast<std::int64_t>(attention.pattern.size());
  if (entries > n_layers || (entries > 0 && n_layers % entries != 0))
    report("attention.pattern", cat(entries, " entries do not fit ", n_layers, " layers: give a divisor of n_layers"));
}

const std::string& ModelConfig::kind_name_of_layer(std::int64_t layer) const {
  return attention.pattern[static_cast<std::size_t>(layer) % attention.pattern.size()];
}

const AttentionKindConfig& ModelConfig::kind_of_layer(std::int64_t layer) const {
  return attention.kinds.at(kind_name_of_layer(layer));
}

AttentionSpec ModelConfig::attention_spec(std::int64_t layer) const {
  const AttentionKindConfig& kind = kind_of_layer(layer);
  const bool random = kind.type == AttentionKind::random_rows;
  AttentionSpec spec{.kind = random ? AttentionKind::sparsek : kind.type,
                     .window = kind.window,
                     .sinks = kind.sinks,
                     .sparsek = {},
                     .pattern = kind.pattern,
                     .n_heads = n_heads,
                     .n_kv_heads = *n_kv_heads,
                     .head_dim = *head_dim};
  spec.pattern.k = kind.k;
  spec.pattern.seed = static_cast<std::uint64_t>(layer);
  spec.sparsek = {.k = kind.k,
                  .slope = *kind.score.slope,
                  .temperature = kind.score.temperature,
                  .gate = kind.gate,
                  .candidates = kind.candidates,
                  .positions = kind.positions,
                  .clamp_distance = *kind.clamp_distance,
                  .pool = kind.pool.value_or(0),
                  .random_scores = random,
                  .linear = kind.linear};
  if (random) {
    spec.sparsek.slope = 0, spec.sparsek.gate = GateMode::hard;
    spec.pattern.seed = stream_of(kind.seed.value_or(0), layer);
  }
  return spec;
}

RopeSpec ModelConfig::rope_spec() const {
  if (arch == Arch::gpt2) return {};
  return {.rotary_dims = static_cast<std::int64_t>(static_cast<double>(*head_dim) * rope.partial), .theta = rope.theta};
}

std::int64_t ModelConfig::score_heads(std::int64_t layer) const {
  const AttentionKindConfig& kind = kind_of_layer(layer);
  if (kind.type != AttentionKind::sparsek && kind.type != AttentionKind::random_rows) return 0;
  return kind.score.per == ScorePer::layer ? 1 : *n_kv_heads;
}

}  // namespace sieve
