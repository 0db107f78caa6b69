// Between the two halves of keys' backward: a key that was selected for many queries lies in the lists of several
// chunks.
#pragma once

#include "attention/kernels/cuda/engine.cuh"

namespace sieve::cuda::hopper {

// Adds up what the chunks of a key left in e.partial, in their order, into the row of its first chunk; the other rows
// stay. If e.column_part, writes e.column_heads of every key that was selected.
void sum_chunks(const Engine& e, Stream stream);

}  // namespace sieve::cuda::hopper
