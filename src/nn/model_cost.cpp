#include "nn/model_cost.h"

#include <algorithm>

#include "attention/kernels/softmax.h"
#include "nn/gla_layer.h"

namespace sieve {
namespace {

// Mean over i = 0..T-1 of min(i + 1, limit).
double mean_bounded(std::int64_t T, std::int64_t limit) {
  const double t = static_cast<double>(T), b = static_cast<double>(std::min(T, limit));
  return (b * (b + 1) / 2 + (t - b) * b) / t;
}

struct LayerShape {
  std::int64_t C, HD, kvD, F, score_heads, D;
  bool gpt2, gla, linear_gates;
};

LayerShape shape_of(const ModelConfig& c, std::int64_t layer) {
  const AttentionKindConfig& kind = c.kind_of_layer(layer);
  return {.C = c.d_model,
          .HD = c.n_heads * *c.head_dim,
          .kvD = *c.n_kv_heads * *c.head_dim,
          .F = *c.d_ff,
          .score_heads = c.score_heads(layer),
          .D = *c.head_dim,
          .gpt2 = c.arch == Arch::gpt2,
          .gla = kind.type == AttentionKind::gla,
          .linear_gates = kind.type == AttentionKind::sparsek && kind.linear};
}

// What the mixer keeps of a token beside its state: projections, and for gla (nn/gla_layer.h: half the heads, values
// twice as wide) its gates, norm and output gate.
std::int64_t projected(const LayerShape& s) {
  return s.gla ? 2 * s.HD + kGlaGateRank + s.HD / 2 + s.HD : s.HD + 2 * s.kvD;
}

std::int64_t matrix_parameters(const LayerShape& s) {
  const std::int64_t gla = s.C * (3 * s.HD + kGlaGateRank) + kGlaGateRank * s.HD / 2;
  const std::int64_t attention = (s.gla ? gla : s.C * (s.HD + 2 * s.kvD)) + s.HD * s.C;
  return attention + (s.gpt2 ? 2 : 3) * s.C * s.F;
}

std::int64_t vector_parameters(const LayerShape& s) {
  // Two norms (LayerNorms with their biases); of gpt2's four biases gla has those of the MLP.
  const std::int64_t biases = s.gla ? s.HD / 2 + 2 * s.D : s.gpt2 ? (s.HD + 2 * s.kvD) + s.C : 0;
  const std::int64_t gates = s.linear_gates ? s.HD / s.D : 0;
  return (s.gpt2 ? 4 * s.C + s.F + s.C : 2 * s.C) + biases + gates;
}

// Elements kept for backward per token, by the ops that keep them: norm inputs, product inputs, attention (qkv,
// output), activation input.
double kept_elements(const LayerShape& s, const RecomputeConfig& r, std::int64_t layer) {
  if (std::find(r.layers.begin(), r.layers.end(), layer) != r.layers.end()) return static_cast<double>(s.C);
  const std::int64_t attention = r.attention ? s.C : 2 * s.C + projected(s) + (s.gla ? 3 : 1) * s.HD;
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

}  // namespace

double mean_keys(const AttentionSpec& spec, std::int64_t T) {
  switch (spec.kind) {
    case AttentionKind::full: return mean_bounded(T, T);
    case AttentionKind::sliding_window: return mean_bounded(T, spec.window + spec.sinks);
    case AttentionKind::sparsek: return mean_bounded(T, spec.window + spec.sparsek.k);
    default: return mean_bounded(T, T);
  }
  return 0;
}

ModelCost model_cost(const ModelConfig& config, std::int64_t B, std::int64_t T, DType compute,
                     const RecomputeConfig& recompute, Device device) {
  ModelCost cost;
  const std::int64_t C = config.d_model, embedding = *config.vocab_size * C;
  cost.parameters = embedding * (*config.tie_embeddings ? 1 : 2) + C * (config.arch == Arch::gpt2 ? 2 : 1);
  if (config.arch == Arch::gpt2) cost.parameters += *config.max_seq * C;
  cost.matmul_parameters = embedding;
  double attention = 0, attention_full = 0;
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    const LayerShape s = shape_of(config, layer);
    const std::int64_t gain = config.kind_of_layer(layer).score.norm == ScoreNorm::timestep ? s.score_heads : 0;
    const std::int64_t scorer = s.score_heads * C + gain;
    cost.parameters += matrix_parameters(s) + vector_parameters(s) + scorer;
    cost.sparsek_parameters += scorer;
    cost.matmul_parameters += matrix_parameters(s) + s.score_heads * C;
    attention += 12.0 * static_cast<double>(s.HD) * mean_keys(config.attention_spec(layer), T);
    attention_full += 12.0 * static_cast<double>(s.HD) * mean_bounded(T, T);
    const double scalars =
        4.0 * static_cast<double>(config.n_heads) + (s.score_heads ? 40.0 * static_cast<double>(s.score_heads) : 0.0);
    const double lists =
        device.is_cuda() ? list_bytes_per_token(config.attention_spec(layer), s.score_heads, T, compute) : 0;
    cost.activation_bytes_per_token +=
        kept_elements(s, recompute, layer) * static_cast<double>(size_of(compute)) + scalars + lists;
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
