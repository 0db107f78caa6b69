#include "attention/attention_cost.h"

#include <algorithm>

#include "attention/kernels/nsa.h"
#include "attention/kernels/select.h"

namespace sieve {
namespace {

// Sums over the queries i = 0 .. T-1, exact.
std::int64_t sum_to(std::int64_t n) { return n * (n + 1) / 2; }

// of min(i + 1, limit)
std::int64_t sum_bounded(std::int64_t T, std::int64_t limit) {
  const std::int64_t b = std::min(T, limit);
  return sum_to(b) + (T - b) * b;
}

// of min(i / size, limit), whole blocks before the query
std::int64_t sum_blocks(std::int64_t T, std::int64_t size, std::int64_t limit) {
  const std::int64_t n = T / size < limit ? T : limit * size, q = n / size;
  return size * sum_to(q - 1) + n % size * q + (T - n) * limit;
}

// of i % size + 1, the query's own block
std::int64_t sum_own_block(std::int64_t T, std::int64_t size) { return T / size * sum_to(size) + sum_to(T % size); }

std::int64_t sum_strided(const PatternSpec& p, std::int64_t T) {
  switch (p.part) {
    case PatternPart::local: return sum_bounded(T, p.stride);
    case PatternPart::columns: return sum_blocks(T, p.stride, T) + T;
    default: return sum_bounded(T, p.stride) + sum_blocks(T, p.stride, T);  // the query itself is in both
  }
}

std::int64_t sum_fixed(const PatternSpec& p, std::int64_t T) {
  const std::int64_t earlier = p.summary * sum_blocks(T, p.stride, T);
  const std::int64_t own =
      T / p.stride * sum_to(p.summary) + sum_to(std::max<std::int64_t>(0, T % p.stride - (p.stride - p.summary)));
  switch (p.part) {
    case PatternPart::local: return sum_own_block(T, p.stride);
    case PatternPart::columns: return earlier + own;
    default: return earlier + sum_own_block(T, p.stride);
  }
}

// Globals see all before them; a later query sees them and what its window has behind them.
std::int64_t sum_longformer(const AttentionSpec& spec, std::int64_t T) {
  const std::int64_t globals = std::min(spec.pattern.globals, T), rest = T - globals;
  return sum_to(globals) + rest * globals + sum_blocks(rest, spec.pattern.dilation, spec.window - 1) + rest;
}

// Whole blocks before the query's own by counting the union of globals, window and random ones, block after block.
std::int64_t sum_bigbird(const PatternSpec& p, std::int64_t T) {
  std::int64_t sum = sum_own_block(T, p.block);
  for (std::int64_t own = 0; own * p.block < T; ++own) {
    const std::int64_t window = std::max<std::int64_t>(0, own - p.window_blocks + 1),  // its first block
        globals = std::min(p.global_blocks, own);
    const std::int64_t blocks =
        window <= globals ? own : globals + (own - window) + std::min(window - globals, p.random_blocks);
    sum += blocks * p.block * std::min(p.block, T - own * p.block);
  }
  return sum;
}

std::int64_t sum_chosen_blocks(const PatternSpec& p, std::int64_t T) {
  return p.block * sum_blocks(T, p.block, p.blocks - 1) + sum_own_block(T, p.block);
}

// Compressed keys that lie whole at or before the query.
std::int64_t sum_compressed(const PatternSpec& p, std::int64_t T) {
  const std::int64_t rest = T - p.compress_block + 1;  // queries that see at least one
  return rest > 0 ? sum_blocks(rest, p.compress_stride, rest) + rest : 0;
}

std::int64_t summaries(const PatternSpec& p, std::int64_t tokens) {
  return tokens / p.stride * p.summary + std::max<std::int64_t>(0, tokens % p.stride - (p.stride - p.summary));
}

// Numbers of a recurrence's state, one sequence; gla has half the heads, whose values are twice as wide.
double state_numbers(const AttentionSpec& spec) {
  const auto D = static_cast<double>(spec.head_dim);
  if (spec.kind == AttentionKind::gla) return static_cast<double>(spec.n_heads) * D * D;
  const bool linear = spec.kind == AttentionKind::linear || spec.sparsek.linear;
  return linear ? static_cast<double>(spec.n_kv_heads) * D * (D + 1) : 0;
}

// What a selection keeps beside the rows, as device_cache.h has it: the scores of the ring, score, key and weight of
// each slot, and what the thresholds see.
std::int64_t selection_bytes(const AttentionSpec& spec, std::int64_t tokens) {
  if (spec.kind != AttentionKind::sparsek) return 0;
  const SparsekSpec& s = spec.sparsek;
  const std::int64_t wanted = pool_scores(s.pool, s.k), pool = wanted == 0 ? tokens : std::min(tokens, wanted);
  const std::int64_t ring = s.candidates == Candidates::on_exit ? std::min(tokens, spec.window) : 0;
  return spec.n_kv_heads * (8 * ring + (8 + 8 + 4) * std::min(tokens, s.k) + (s.gate == GateMode::hard ? 0 : 8 * pool));
}

}  // namespace

double mean_keys(const AttentionSpec& spec, std::int64_t T) {
  const PatternSpec& p = spec.pattern;
  const auto mean = [T](std::int64_t sum) { return static_cast<double>(sum) / static_cast<double>(T); };
  switch (spec.kind) {
    case AttentionKind::full: return mean(sum_to(T));
    case AttentionKind::sliding_window: return mean(sum_bounded(T, spec.window + spec.sinks));
    case AttentionKind::sparsek:
    case AttentionKind::random_rows: return mean(sum_bounded(T, spec.window + spec.sparsek.k));
    case AttentionKind::strided: return mean(sum_strided(p, T));
    case AttentionKind::fixed: return mean(sum_fixed(p, T));
    case AttentionKind::longformer: return mean(sum_longformer(spec, T));
    case AttentionKind::bigbird: return mean(sum_bigbird(p, T));
    case AttentionKind::hash: return mean(sum_to(T - 1)) / static_cast<double>(p.buckets);
    case AttentionKind::top_k:
    case AttentionKind::dsa: return mean(sum_bounded(T, p.k));
    case AttentionKind::moba: return mean(sum_chosen_blocks(p, T));
    case AttentionKind::nsa: return mean(sum_bounded(T, spec.window) + sum_chosen_blocks(p, T) + sum_compressed(p, T));
    case AttentionKind::linear:
    case AttentionKind::gla: return 0;
  }
  return 0;
}

double mean_scored_pairs(const AttentionSpec& spec, std::int64_t T) {
  const bool keys = spec.kind == AttentionKind::top_k || spec.kind == AttentionKind::dsa;
  const std::int64_t sum =
      keys ? sum_to(T) : (spec.kind == AttentionKind::moba ? sum_blocks(T, spec.pattern.block, T) : 0);
  return static_cast<double>(sum) / static_cast<double>(T);
}

std::int64_t cached_rows(const AttentionSpec& spec, std::int64_t tokens) {
  const PatternSpec& p = spec.pattern;
  switch (spec.kind) {
    case AttentionKind::sliding_window: return std::min(tokens, spec.window + spec.sinks);
    case AttentionKind::sparsek:
    case AttentionKind::random_rows: return std::min(tokens, spec.window + spec.sparsek.k);
    case AttentionKind::strided: return p.part == PatternPart::local ? std::min(tokens, p.stride) : tokens;
    case AttentionKind::fixed:
      if (p.part == PatternPart::local) return std::min(tokens, p.stride);
      return summaries(p, tokens) + (p.part == PatternPart::columns ? 0 : std::min(tokens, p.stride - p.summary));
    case AttentionKind::longformer: return std::min(tokens, p.globals + (spec.window - 1) * p.dilation + 1);
    case AttentionKind::hash: return tokens * spec.group();
    case AttentionKind::nsa: {
      const std::int64_t compressed = compressed_count(tokens, p.compress_block, p.compress_stride);
      return tokens + std::min(tokens, spec.window) + compressed + tokens - compressed * p.compress_stride;
    }
    case AttentionKind::linear:
    case AttentionKind::gla: return 0;
    default: return tokens;
  }
}

double cache_bytes(const AttentionSpec& spec, std::int64_t tokens, std::int64_t bytes) {
  const std::int64_t index = spec.kind == AttentionKind::dsa ? tokens * spec.pattern.index_dim : 0;
  const std::int64_t numbers = cached_rows(spec, tokens) * spec.n_kv_heads * 2 * spec.head_dim + index;
  return static_cast<double>(numbers * bytes + selection_bytes(spec, tokens)) + 4 * state_numbers(spec);
}

double attention_flops(const AttentionSpec& spec, std::int64_t T) {
  const PatternSpec& p = spec.pattern;
  const auto HD = static_cast<double>(spec.n_heads * spec.head_dim), D = static_cast<double>(spec.head_dim);
  const auto index = static_cast<double>(p.index_heads * p.index_dim);
  const double visited = mean_keys(spec, T), scored = mean_scored_pairs(spec, T);
  double flops = 12 * HD * visited + 2 * (spec.kind == AttentionKind::dsa ? index : HD) * scored;
  // The loss of the indexer: the heads' probabilities again, and the index scores with their gradient.
  if (spec.kind == AttentionKind::dsa) flops += (2 * HD + 6 * index) * visited;
  // A compressed key and its value pass two products of their own every compress_stride tokens.
  if (spec.kind == AttentionKind::nsa)
    flops += 6 * 2 * static_cast<double>(spec.n_kv_heads * (p.compress_block + 1)) * D * D /
             static_cast<double>(p.compress_stride);
  // A number of the state is written (and, gated, decayed) once a key-value head and read once a query head; backward
  // twice as much.
  const auto readers = static_cast<double>(spec.n_heads), writers = static_cast<double>(spec.n_kv_heads);
  if (spec.kind == AttentionKind::gla) return flops + 3 * 5 * state_numbers(spec);
  if (state_numbers(spec) > 0) flops += 3 * 2 * (readers + writers) * D * (D + 1);
  return flops;
}

}  // namespace sieve
