// What an attention layer costs, by formula: a document of T positions, means over its queries, of one query head. Each
// formula is counted after in a test. Letters: T length, D head size, H query heads, Hkv key-value heads.
#pragma once

#include <cstdint>

#include "attention/spec.h"

namespace sieve {

// Keys that a query visits in a softmax, itself included. Exact but for hash: the expectation under buckets of equal
// size (1/buckets of the keys before the query). nsa: its three branches together. linear, gla: 0, a recurrence has no
// keys.
double mean_keys(const AttentionSpec& spec, std::int64_t T);

// Pairs that a query scores in order to choose what it visits, beside them: every key (top_k, by q . k; dsa, by the
// index heads) or every earlier block (moba, by its mean). 0 for all others: a window or a fixed pattern chooses
// nothing, SparseK scores a key once whatever the number of queries, hash compares bucket numbers, nsa takes the
// probabilities of its compressed branch.
double mean_scored_pairs(const AttentionSpec& spec, std::int64_t T);

// Rows of a key and a value that generation must hold after `tokens` tokens, per key-value head (hash: of all query
// heads of its group, which hold keys of their own). What a pattern will never show again is not counted: fixed keeps
// its own block and the summaries (or one of them, by `part`), longformer the first `globals` and what its window
// reaches, strided with part local its window. nsa: all rows of the selected branch, the window's, the compressed ones
// and those that the next of these will stand for.
std::int64_t cached_rows(const AttentionSpec& spec, std::int64_t tokens);

// Bytes of one sequence's cache in one layer after `tokens` tokens, rows of `bytes` a number; states of recurrences are
// fp32; with the scalars of SparseK's selection as device_cache.h keeps them.
double cache_bytes(const AttentionSpec& spec, std::int64_t tokens, std::int64_t bytes);

// FLOPs a token, forward and backward, of everything but products with weights: 12 H D a visited key (Kaplan et al.
// 2020, arXiv 2001.08361, appendix B), scored pairs once, forward (no gradient passes through a choice), dsa's loss on
// its chosen keys, the states of recurrences, nsa's compression (whose weights not every token meets).
double attention_flops(const AttentionSpec& spec, std::int64_t T);

}  // namespace sieve
