#include "dist/gpus.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <vector>

#include "core/build.h"
#include "core/error.h"
#include "dist/nccl_communicator.h"

namespace sieve {
namespace {

// What travels: texts cut to a fixed size, so that one collective of whole numbers carries them.
struct Packed {
  std::array<char, 64> host{};
  std::array<char, 32> bus{};
  bool operator==(const Packed&) const = default;
};
static_assert(sizeof(Packed) == 96);

template <std::size_t N>
void put(std::array<char, N>& to, const std::string& text) {
  std::memcpy(to.data(), text.data(), std::min(N - 1, text.size()));
}

}  // namespace

Device gpu_of_rank(int local_rank, int visible) {
  if (local_rank < visible) return {Device::Kind::cuda, local_rank};
  if (visible == 1) return {Device::Kind::cuda, 0};  // whether it is this rank's alone, check_own_gpus() finds out
  if (visible == 0)
    fail(Exit::config, "device.type", "this machine shows no GPU to rank ", local_rank,
         ": look at CUDA_VISIBLE_DEVICES and nvidia-smi, or use device.type=cpu");
  fail(Exit::config, "device.type", "rank ", local_rank, " of this machine wants a GPU of its own, and sees ", visible,
       "; start at most ", visible, " ranks a machine, show each rank one GPU of its own (srun --gpus-per-task=1), ",
       "or use device.type=cpu");
}

GpuIdentity identity_of(Device gpu) {
  GpuIdentity id;
  // The same for all containers of a machine, whose host names may differ; the other way round, names of cloned
  // machines may be equal.
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id.host;
  if (id.host.empty()) {
    char name[64] = {};
    ::gethostname(name, sizeof name - 1);
    id.host = name;
  }
  id.bus = device_info(gpu).bus;
  return id;
}

void check_own_gpus(Communicator& comm, const GpuIdentity& mine) {
  if (comm.size() == 1) return;
  Packed packed;
  put(packed.host, mine.host);
  put(packed.bus, mine.bus);
  Tensor part = empty({static_cast<std::int64_t>(sizeof packed)}, DType::u8);
  std::memcpy(part.raw(), &packed, sizeof packed);
  const Tensor all = comm.all_gather(part, "GPUs of the ranks");
  std::vector<Packed> ranks(static_cast<std::size_t>(comm.size()));
  std::memcpy(ranks.data(), all.raw(), all.nbytes());
  const auto on_cpu = [](const Packed& p) { return p.bus[0] == '\0'; };
  const auto cpu = std::find_if(ranks.begin(), ranks.end(), on_cpu);
  const auto gpu = std::find_if_not(ranks.begin(), ranks.end(), on_cpu);
  if (gpu == ranks.end()) return;
  if (cpu != ranks.end())
    fail(Exit::config, "device.type", "rank ", gpu - ranks.begin(), " computes on a GPU, rank ", cpu - ranks.begin(),
         " on the CPU because it sees none: give every rank a GPU, or use device.type=cpu");
  for (auto later = ranks.begin() + 1; later != ranks.end(); ++later) {
    const auto first = std::find(ranks.begin(), later, *later);
    if (first == later) continue;
    fail(Exit::config, "device.type", "ranks ", first - ranks.begin(), " and ", later - ranks.begin(),
         " compute on one GPU of their machine, PCI bus ", later->bus.data(),
         ": start no more ranks a machine than it has GPUs, and let each rank see all of them or one of its own ",
         "(CUDA_VISIBLE_DEVICES; srun --gpus-per-task=1)");
  }
}

void check_own_gpus(Communicator& comm, Device device) {
  if (comm.size() > 1) check_own_gpus(comm, device.is_cuda() ? identity_of(device) : GpuIdentity{});
}

void connect_gpus(Communicator& comm, Device device, double timeout_seconds) {
  if (comm.size() == 1 || comm.connected()) return;
  check_own_gpus(comm, device);
  if (device.is_cpu()) return;
  if constexpr (build::with_nccl) {
    comm.connect(make_nccl_collectives(comm, device, timeout_seconds));
  } else {
    fail(Exit::config, "device", "started as rank ", comm.rank(), " of ", comm.size(),
         ", but this program was built without NCCL: build again with NCCL installed, or start one process");
  }
}

}  // namespace sieve
