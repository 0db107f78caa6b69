// Collectives between the ranks' GPUs by NCCL. Includes no NCCL header: see dist/gpus.h for who calls this.
#pragma once

#include <memory>
#include <string>

#include "dist/communicator.h"
#include "dist/launch.h"

namespace sieve {

// Connects this rank's GPU with those of all ranks of `host`, which carries the first message. Every rank calls it,
// each with a GPU of its own. Non-blocking underneath: whatever does not come to an end within `timeout_seconds` throws
// Error(Exit::peer) that names rank and operation. Asynchronous errors are told to host's Progress.
std::unique_ptr<DeviceCollectives> make_nccl_collectives(Communicator& host, Device device, double timeout_seconds);

// A communicator without MPI, for launchers that know no PMI: host values travel through the GPUs too. The ranks meet
// in `folder`, which they share and which no earlier run has used.
std::unique_ptr<Communicator> make_nccl_communicator(const Launch& launch, const std::string& folder,
                                                     double timeout_seconds);

}  // namespace sieve
