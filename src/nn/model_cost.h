// What a model costs, counted from each layer's real attention pattern. Nothing is allocated.
#pragma once

#include <string>
#include <vector>

#include "attention/attention_cost.h"
#include "nn/decoder.h"

namespace sieve {

struct ModelCost {
  std::int64_t parameters = 0;          // all, tied weights once
  std::int64_t sparsek_parameters = 0;  // of the scoring networks
  std::int64_t matmul_parameters = 0;   // those that every token multiplies (head included, embeddings not)
  // Forward + backward: 6 per matmul parameter (Kaplan et al. 2020, arXiv 2001.08361, appendix B) and each layer's
  // attention_flops(), with the keys its pattern really visits.
  double flops_per_token = 0;
  double flops_per_token_full = 0;        // the same model with full attention in every layer
  double activation_bytes_per_token = 0;  // kept for backward
  // Held by the loss of one micro-batch: a chunk of logits (and of their gradient where it has another dtype), the
  // head's gradient, that of its input.
  double loss_bytes = 0;
};

// What one of the model's attention kinds costs in a layer, in a document of T tokens.
struct KindCost {
  std::string name;  // of model.attention.kinds
  AttentionKind type{};
  std::vector<std::int64_t> layers;
  double visited_rows = 0, scored_pairs = 0;  // a query's mean, per head (attention/attention_cost.h)
  std::int64_t cached_rows = 0;               // per key-value head after T tokens
  double cache_bytes = 0;                     // one sequence's, in the compute dtype
  std::int64_t parameters = 0;                // of one layer's mixer: projections and what the kind adds
};
std::vector<KindCost> kind_costs(const ModelConfig& resolved, std::int64_t T, DType compute);

// B sequences of T tokens in a micro-batch on `device`, whose kind the loss's chunks depend on.
ModelCost model_cost(const ModelConfig& resolved, std::int64_t B, std::int64_t T, DType compute,
                     const RecomputeConfig& recompute, Device device = {});

}  // namespace sieve
