// One GPU a rank.
#pragma once

#include <string>

#include "dist/communicator.h"

namespace sieve {

// The GPU of a rank that sees `visible` of them: number `local_rank` (among the ranks of its machine) where every rank
// sees all GPUs, number 0 where a launcher shows each rank one of its own (srun --gpus-per-task=1,
// CUDA_VISIBLE_DEVICES). Exit::config where there is none for it.
Device gpu_of_rank(int local_rank, int visible);

// Which GPU a rank has: two ranks share one if both are equal.
struct GpuIdentity {
  std::string host;  // of the machine, not of a container on it where the system tells
  std::string bus;   // DeviceInfo::bus
};
GpuIdentity identity_of(Device gpu);

// Exit::config on every rank where two ranks have one GPU, with their numbers and its bus id, and where some ranks have
// a GPU and others none. `mine` is empty for a rank that computes on the CPU; every rank calls this.
void check_own_gpus(Communicator& comm, const GpuIdentity& mine);
void check_own_gpus(Communicator& comm, Device device);

// Connects the ranks' GPUs, so that `comm` carries their tensors: once, before the first of them, by every rank with
// the device it computes on. A world of one and one of CPUs need nothing. What check_own_gpus() refuses, a build
// without NCCL and whatever is not connected within `timeout_seconds` are errors on every rank.
void connect_gpus(Communicator& comm, Device device, double timeout_seconds);

}  // namespace sieve
