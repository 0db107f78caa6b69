#include "nn/model_cost.h"

#include <algorithm>

#include "attention/kernels/linear.h"
#include "attention/kernels/softmax.h"
#include "attention/pattern.h"
#include "nn/gla_layer.h"
#include "nn/mixer.h"

namespace sieve {
namespace {

struct LayerShape {
  std::int64_t C, HD, kvD, F, score_heads;
  bool gpt2;
};

LayerShape shape_of(const ModelConfig& c, std::int64_t layer) {
  return {c.d_model, c.n_heads * *c.head_dim, *c.n_kv_heads * *c.head_dim,
          *c.d_ff,   c.score_heads(layer),    c.arch == Arch::gpt2};
}

// Elements that a mixer keeps of a token from its projections on to what the output's product reads.
std::int64_t mixer_elements(const AttentionSpec& spec, const LayerShape& s) {
  const std::int64_t qkv = s.HD + 2 * s.kvD, index = spec.pattern.index_dim * (2 * spec.pattern.index_heads + 2);
  switch (spec.kind) {
    case AttentionKind::gla: return 2 * s.HD + kGlaGateRank + s.HD / 2 + s.HD + 3 * s.HD;  // gates, norm, output gate
    case AttentionKind::hash: return s.HD + s.kvD + 3 * s.HD + s.HD;  // what was projected, and every head's own key
    case AttentionKind::dsa: return qkv + s.HD + index;
    case AttentionKind::nsa: {
      // Queries, two branches, three outputs and their sum, gates; compressed: rows, hidden twice, what became of them.
      const std::int64_t compressed = 2 * s.kvD * (spec.pattern.compress_block + 3) / spec.pattern.compress_stride;
      return s.HD + 2 * qkv + 4 * s.HD + 3 * spec.n_heads + compressed;
    }
    default: return (differs_by_head(spec) ? 3 * s.HD : qkv) + s.HD;  // heads that choose have keys of their own
  }
}

// Bytes of what is kept in a type of its own, per token: the lists that a pattern's queries chose, the states before
// every chunk of a recurrence.
double own_bytes(const AttentionSpec& spec) {
  const PatternSpec& p = spec.pattern;
  switch (spec.kind) {
    case AttentionKind::hash: return 4.0 * static_cast<double>(spec.n_heads);
    case AttentionKind::top_k: return 4.0 * static_cast<double>(spec.n_heads * p.k);
    case AttentionKind::dsa: return 4.0 * static_cast<double>(p.k);
    case AttentionKind::moba: return 4.0 * static_cast<double>(spec.n_heads * p.blocks);
    case AttentionKind::nsa: return 4.0 * static_cast<double>(spec.n_kv_heads * p.blocks + spec.n_heads);
    default: return cache_bytes(spec, 0, 0) / static_cast<double>(kLinearChunk);
  }
}

// Elements kept for backward per token, by the ops that keep them: norm inputs, product inputs, the mixer, activation
// input.
double kept_elements(const LayerShape& s, const AttentionSpec& spec, const RecomputeConfig& r, std::int64_t layer) {
  if (std::find(r.layers.begin(), r.layers.end(), layer) != r.layers.end()) return static_cast<double>(s.C);
  const std::int64_t attention = r.attention ? s.C : 2 * s.C + mixer_elements(spec, s);
  const std::int64_t hidden = s.gpt2 ? (layer < r.activations ? 1 : 2) : 3;
  const std::int64_t mlp = r.mlp ? s.C : 2 * s.C + hidden * s.F;
  return static_cast<double>(attention + mlp);
}

// The row lists that a SparseK layer on a GPU keeps from forward to backward (attention/kernels/softmax.h), per token.
double list_bytes_per_token(const AttentionSpec& spec, std::int64_t score_heads, std::int64_t T, DType compute) {
  if (score_heads == 0) return 0;
  const bool warpgroups = compute == DType::bf16 && (spec.head_dim == 64 || spec.head_dim == 128);
  const std::int64_t tile = warpgroups ? warpgroup_tile_queries(spec.head_dim) : kQueryTile,
                     chunk = warpgroups ? warpgroup_chunk_queries(T) : kRowListQueries;
  double entries = 0;
  for (const std::int64_t queries : {tile, chunk})
    entries += static_cast<double>(row_list_capacity(T, spec.sparsek.k, queries)) / static_cast<double>(queries);
  return 4.0 * static_cast<double>(score_heads) * entries;
}

// Asked of the layers themselves.
void count_parameters(const ModelConfig& config, ModelCost& cost) {
  const Decoder shapes(config, {.shapes_only = true});
  for (const ParameterPtr& p : shapes.parameters()) {
    cost.parameters += p->numel();
    if (p->scorer) cost.sparsek_parameters += p->numel();
    const bool compresses = p->name.find(".compress.") != std::string::npos;  // counted by attention_flops()
    if (p->name.starts_with("layers.") && p->master.rank() >= 2 && !compresses) cost.matmul_parameters += p->numel();
  }
  cost.matmul_parameters += *config.vocab_size * config.d_model;  // the head's, whose weights may be the embedding's
}

std::int64_t mixer_parameters(const ModelConfig& config, std::int64_t layer) {
  ParameterFactory make(DType::f32, 0, true);
  make_mixer(make, "mixer", config, layer);
  std::int64_t n = 0;
  for (const ParameterPtr& p : make.all()) n += p->numel();
  return n;
}

}  // namespace

std::vector<KindCost> kind_costs(const ModelConfig& config, std::int64_t T, DType compute) {
  std::vector<KindCost> kinds;
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string& name = config.kind_name_of_layer(layer);
    auto known = std::find_if(kinds.begin(), kinds.end(), [&](const KindCost& k) { return k.name == name; });
    if (known == kinds.end()) {
      const AttentionSpec spec = config.attention_spec(layer);
      kinds.push_back({.name = name,
                       .type = config.kind_of_layer(layer).type,
                       .layers = {},
                       .visited_rows = mean_keys(spec, T),
                       .scored_pairs = mean_scored_pairs(spec, T),
                       .cached_rows = cached_rows(spec, T),
                       .cache_bytes = cache_bytes(spec, T, static_cast<std::int64_t>(size_of(compute))),
                       .parameters = mixer_parameters(config, layer)});
      known = kinds.end() - 1;
    }
    known->layers.push_back(layer);
  }
  return kinds;
}

ModelCost model_cost(const ModelConfig& config, std::int64_t B, std::int64_t T, DType compute,
                     const RecomputeConfig& recompute, Device device) {
  ModelCost cost;
  const std::int64_t C = config.d_model;
  count_parameters(config, cost);
  double attention = 0, attention_full = 0;
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    const LayerShape s = shape_of(config, layer);
    const AttentionSpec spec = config.attention_spec(layer);
    AttentionSpec full = spec;
    full.kind = AttentionKind::full, full.sparsek.linear = false;
    attention += attention_flops(spec, T);
    attention_full += attention_flops(full, T);
    const double scalars = 4.0 * static_cast<double>(config.n_heads) +
                           (s.score_heads ? 40.0 * static_cast<double>(s.score_heads) : 0.0) + own_bytes(spec);
    const double lists = device.is_cuda() ? list_bytes_per_token(spec, s.score_heads, T, compute) : 0;
    cost.activation_bytes_per_token +=
        kept_elements(s, spec, recompute, layer) * static_cast<double>(size_of(compute)) + scalars + lists;
  }
  const double products = 6.0 * static_cast<double>(cost.matmul_parameters);
  cost.flops_per_token = products + attention;
  cost.flops_per_token_full = products + attention_full;
  cost.activation_bytes_per_token += 2.0 * static_cast<double>(C) * static_cast<double>(size_of(compute));
  // autograd/ops/loss.cpp. The gradient of the last hidden state is bf16 at once on a GPU, fp32 until backward on a
  // CPU.
  const std::int64_t rows = B * T, V = *config.vocab_size;
  const LossChunk chunk = loss_chunk(device, rows, C, V, compute);
  const std::size_t gradient = chunk.logits == compute ? 0 : size_of(compute);
  const auto bytes = [](std::int64_t elements, std::size_t each) {
    return static_cast<double>(elements) * static_cast<double>(each);
  };
  const DType exact = compute_dtype(compute);
  cost.loss_bytes = bytes(chunk.rows * chunk.ld, size_of(chunk.logits) + gradient) + bytes(V * C, size_of(exact)) +
                    bytes(rows * C, size_of(device.is_cuda() ? compute : exact));
  return cost;
}

}  // namespace sieve
