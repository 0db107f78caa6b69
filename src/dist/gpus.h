// One GPU a rank.
#pragma once

#include "dist/communicator.h"

namespace sieve {

// Connects the ranks' GPUs, so that `comm` carries their tensors: once, before the first of them, by every rank with
// the GPU it computes on (rank n of a machine: GPU n). A world of one and the CPU need nothing. Two ranks that name one
// GPU, a build without NCCL and whatever is not connected within `timeout_seconds` are errors on every rank.
void connect_gpus(Communicator& comm, Device device, double timeout_seconds);

}  // namespace sieve
