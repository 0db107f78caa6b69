// What a model costs, counted from each layer's real attention pattern. Nothing is allocated.
#pragma once

#include "nn/decoder.h"

namespace sieve {

struct ModelCost {
  std::int64_t parameters = 0;          // all, tied weights once
  std::int64_t sparsek_parameters = 0;  // of the scoring networks
  std::int64_t matmul_parameters = 0;   // those that every token multiplies (head included, embeddings not)
  // Forward + backward: 6 per matmul parameter + 12 H D (mean keys per query) per layer (Kaplan et al. 2020, arXiv
  // 2001.08361, appendix B, with the keys a pattern really visits).
  double flops_per_token = 0;
  double flops_per_token_full = 0;        // the same model with full attention in every layer
  double activation_bytes_per_token = 0;  // kept for backward
  // Held by the loss of one micro-batch: a chunk of logits (and of their gradient where it has another dtype), the
  // head's gradient, that of its input.
  double loss_bytes = 0;
};

// B sequences of T tokens in a micro-batch on `device`, whose kind the loss's chunks depend on.
ModelCost model_cost(const ModelConfig& resolved, std::int64_t B, std::int64_t T, DType compute,
                     const RecomputeConfig& recompute, Device device = {});
double mean_keys(const AttentionSpec& spec, std::int64_t T);  // keys a query visits, mean over the positions 0..T-1

}  // namespace sieve
