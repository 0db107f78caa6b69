#include "dist/gpus.h"

#include "core/build.h"
#include "core/error.h"
#include "dist/nccl_communicator.h"

namespace sieve {

void connect_gpus(Communicator& comm, Device device, double timeout_seconds) {
  if (device.is_cpu() || comm.size() == 1 || comm.connected()) return;
  const bool taken = device.index != comm.local_rank();
  if (comm.any(taken, "GPUs of the ranks"))
    fail(Exit::config, "device", "rank ", comm.rank(), ", number ", comm.local_rank(), " on its machine, computes on ",
         device.str(), ": rank n of a machine uses GPU n, and on some rank it does not");
  if constexpr (build::with_nccl) {
    comm.connect(make_nccl_collectives(comm, device, timeout_seconds));
  } else {
    fail(Exit::config, "device", "started as rank ", comm.rank(), " of ", comm.size(),
         ", but this program was built without NCCL: build again with NCCL installed, or start one process");
  }
}

}  // namespace sieve
