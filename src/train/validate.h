// The validation loss of a model: complete, in fixed order, the same number on any number of ranks and threads.
#pragma once

#include "data/validation.h"
#include "dist/communicator.h"
#include "nn/decoder.h"

namespace sieve {

// Mean negative log-likelihood in nats per target token. Blocks are spread over the ranks; each block is summed by
// itself in fp64, and the blocks are added in their order on every rank.
double validation_loss(const Decoder& model, const ValidationSet& set, Communicator& comm);

}  // namespace sieve
