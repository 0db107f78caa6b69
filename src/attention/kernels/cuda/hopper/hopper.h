// The softmax engine on sm_90a in bf16: products of warpgroups, keys streamed into shared memory by a producer. Same
// arguments and the same results (up to rounding) as the general kernels beside this folder; docs/attention_engines.md,
// "On the GPU". One list of gathered rows serves a tile of queries (forward, queries' backward), one a chunk
// (keys' backward); lists come in three runs (kernels/softmax.h, RowLists).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "attention/kernels/cuda/engine.cuh"

namespace sieve::cuda::hopper {

// dQ and, if e.row_heads, sums of the score gradient over a query's keys; out, statistics.
void forward(const Engine& e, Stream stream);
void backward_queries(const Engine& e, Stream stream);
// delta (B, H, T) = dO . o.
void make_delta(const Engine& e, float* delta, Stream stream);
// Partial dK, dV (fp32) and columns of the score gradient of every chunk's rows; then dK, dV of every key with what
// waits for it.
void backward_rows(const Engine& e, Stream stream);
void backward_keys(const Engine& e, Stream stream);

// Blocks of threads that stay and take items in turn: one a multiprocessor, no more than there are items.
std::int64_t persistent_blocks(std::int64_t items);

// Tensor map over `rows` (B, T, heads, D) for copy_box: boxes of 64 features of one head at `positions` <= 256
// consecutive positions, 128-byte swizzle, zeros outside [0, T). Rows' base + offset and stride must be multiples of 8
// elements.
CUtensorMap map_rows(const Rows& rows, std::int64_t B, std::int64_t T, std::int64_t heads, std::int64_t D,
                     std::int64_t positions);

}  // namespace sieve::cuda::hopper
