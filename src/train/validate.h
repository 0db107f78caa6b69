// The validation loss of a model: complete, in fixed order, the same number on any number of ranks and threads.
#pragma once

#include "data/tokenizer.h"
#include "data/validation.h"
#include "dist/communicator.h"
#include "nn/decoder.h"

namespace sieve {

// Mean negative log-likelihood in nats per target token. Blocks are spread over the ranks; each block is summed by
// itself in fp64, and the blocks are added in their order on every rank.
double validation_loss(const Decoder& model, const ValidationSet& set, Communicator& comm);

// Mean bytes of text that a target of the set stands for: loss / (ln 2 * this) is bits per byte, which compares models
// with different tokenizers.
double bytes_per_target(const ValidationSet& set, const Tokenizer& tokenizer);

}  // namespace sieve
