#include "dist/nccl_communicator.h"

#include <nccl.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "core/error.h"
#include "dist/gpus.h"
#include "dist/meeting.h"
#include "tensor/cuda/check.h"

namespace sieve {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

ncclDataType_t nccl_type(DType t) {
  switch (t) {
    case DType::f32: return ncclFloat32;
    case DType::f64: return ncclFloat64;
    case DType::i32: return ncclInt32;
    case DType::i64: return ncclInt64;
    default: fail(Exit::internal, "nccl", "no reduction of ", name_of(t));
  }
}

std::string bytes_of(const ncclUniqueId& id) { return {id.internal, sizeof id.internal}; }

ncclUniqueId id_of(const std::string& bytes) {
  ncclUniqueId id{};
  if (bytes.size() != sizeof id.internal)
    fail(Exit::peer, "nccl", "an id of ", bytes.size(), " bytes: the ranks are different builds");
  std::memcpy(id.internal, bytes.data(), sizeof id.internal);
  return id;
}

ncclUniqueId new_id() {
  ncclUniqueId id{};
  const ncclResult_t result = ncclGetUniqueId(&id);
  if (result != ncclSuccess) fail(Exit::peer, "nccl", "ncclGetUniqueId: ", ncclGetErrorString(result));
  return id;
}

// One lock around every call on the ncclComm_t: the watchdog asks for errors from its own thread, and completing a
// pending operation is not safe on two at once.
class NcclCollectives final : public DeviceCollectives {
 public:
  NcclCollectives(const Communicator& owner, Progress& progress, Device device, const ncclUniqueId& id, double timeout)
      : owner_(owner),
        progress_(progress),
        rank_(owner.rank()),
        timeout_(timeout),
        unwinding_(std::uncaught_exceptions()),
        stream_(side_stream(device)) {
    const Progress::Scope scope(progress_, "connecting the GPUs");
    const std::lock_guard lock(mutex_);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    settle(ncclCommInitRankConfig(&comm_, owner.size(), id, rank_, &config), "ncclCommInitRankConfig");
    progress_.monitor([this] { return fault(); });
  }

  ~NcclCollectives() override {
    progress_.monitor({});
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) return;
    // After a failure the peers may never come: nothing here may wait for them.
    if (owner_.abandoned() || std::uncaught_exceptions() > unwinding_) {
      ncclCommAbort(comm_);
      return;
    }
    ncclResult_t state = ncclCommFinalize(comm_);
    for (const auto begin = Clock::now(); state == ncclInProgress && seconds_since(begin) < 5;) {
      std::this_thread::sleep_for(100us);
      if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess) break;
    }
    state == ncclSuccess ? ncclCommDestroy(comm_) : ncclCommAbort(comm_);
  }

  std::string_view backend() const override { return "nccl"; }
  Stream stream() const override { return stream_; }

  void all_reduce(void* values, std::int64_t count, DType dtype, ReduceOp op) override {
    call("ncclAllReduce", [&] {
      return ncclAllReduce(values, values, static_cast<std::size_t>(count), nccl_type(dtype),
                           op == ReduceOp::sum ? ncclSum : ncclMax, comm_, cuda::handle_of(stream_));
    });
  }
  void reduce(void* values, std::int64_t count, DType dtype, int root) override {
    call("ncclReduce", [&] {
      return ncclReduce(values, values, static_cast<std::size_t>(count), nccl_type(dtype), ncclSum, root, comm_,
                        cuda::handle_of(stream_));
    });
  }
  void broadcast(void* values, std::size_t bytes, int root) override {
    call("ncclBroadcast",
         [&] { return ncclBroadcast(values, values, bytes, ncclUint8, root, comm_, cuda::handle_of(stream_)); });
  }
  void all_gather(const void* mine, void* all, std::size_t bytes_each) override {
    call("ncclAllGather",
         [&] { return ncclAllGather(mine, all, bytes_each, ncclUint8, comm_, cuda::handle_of(stream_)); });
  }
  void exchange(const void* send, std::size_t send_bytes, void* recv, std::size_t recv_bytes, int peer) override {
    call("ncclSend and ncclRecv", [&] {
      ncclResult_t result = ncclGroupStart();
      if (result == ncclSuccess && send_bytes > 0)
        result = ncclSend(send, send_bytes, ncclUint8, peer, comm_, cuda::handle_of(stream_));
      if (result == ncclSuccess && recv_bytes > 0)
        result = ncclRecv(recv, recv_bytes, ncclUint8, peer, comm_, cuda::handle_of(stream_));
      const ncclResult_t ended = ncclGroupEnd();
      return result == ncclSuccess || result == ncclInProgress ? ended : result;
    });
  }

 private:
  template <class F>
  void call(const char* name, const F& f) {
    const std::lock_guard lock(mutex_);
    if (comm_ == nullptr) fail(Exit::peer, "nccl", "rank ", rank_, ": ", name, " after an earlier failure");
    settle(f(), name);
  }

  // Until the operation is queued (not: done). An event recorded before that would not wait for it.
  void settle(ncclResult_t result, const char* name) {
    const auto begin = Clock::now();
    while (result == ncclInProgress) {
      const double waited = seconds_since(begin);
      if (owner_.abandoned()) give_up(name, "given up after a failure elsewhere");
      if (waited > timeout_) give_up(name, cat("no end after ", timeout_, " s: is a rank missing?"));
      waited < 1e-3 ? std::this_thread::yield() : std::this_thread::sleep_for(100us);
      if (waited > 1e-3) progress_.beat();  // this limit counts here, not the watchdog's
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &result);
      if (asked != ncclSuccess) result = asked;
    }
    if (result != ncclSuccess) give_up(name, described(result));
  }

  std::string described(ncclResult_t result) const {
    const char* detail = ncclGetLastError(comm_);
    std::string text = ncclGetErrorString(result);
    if (detail != nullptr && *detail != 0) text += cat(" (", detail, ")");
    // What it says of a GPU that two ranks name; with MPI they have compared before (check_own_gpus).
    if (result == ncclInvalidUsage) text += "; has every rank a GPU of its own?";
    return text;
  }

  // Kernels that wait for a peer end too, so that the host can go on to its own end.
  [[noreturn]] void give_up(const char* name, const std::string& why) {
    if (comm_ != nullptr) ncclCommAbort(std::exchange(comm_, nullptr));
    fail(Exit::peer, "nccl", "rank ", rank_, ": ", name, " in ", progress_.where(), ": ", why);
  }

  // For the watchdog, which must not wait for a thread that hangs.
  std::string fault() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || comm_ == nullptr) return "";
    ncclResult_t state = ncclSuccess;
    if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess || state == ncclSuccess || state == ncclInProgress)
      return "";
    return "nccl: " + described(state);
  }

  const Communicator& owner_;
  Progress& progress_;
  int rank_;
  double timeout_;
  int unwinding_;
  Stream stream_;
  std::mutex mutex_;
  ncclComm_t comm_ = nullptr;
};

struct Cleared {
  const std::string& folder;
  bool mine;
  ~Cleared() {
    if (mine) clear_meeting(folder);
  }
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(const Launch& launch, const std::string& folder, double timeout)
      : Communicator(launch.rank, launch.size), local_rank_(launch.local_rank) {
    const Device device = gpu_of_rank(local_rank_, cuda_device_count());
    main_stream(device);  // makes the device this thread's
    const std::string id = meet_in_folder(launch, folder, timeout, [] { return bytes_of(new_id()); });
    const Cleared cleared{folder, rank() == 0};  // also if NCCL cannot start: the next run needs the folder
    auto collectives = std::make_unique<NcclCollectives>(*this, progress(), device, id_of(id), timeout);
    gpus_ = collectives.get();
    connect(std::move(collectives));
  }
  std::string_view backend() const override { return "nccl"; }
  int local_rank() const override { return local_rank_; }

 protected:
  // Host values go to the GPU and come back; the copy back waits for the stream.
  void do_all_reduce(void* values, std::int64_t count, DType dtype, ReduceOp op) override {
    const std::size_t bytes = static_cast<std::size_t>(count) * size_of(dtype);
    const Tensor there = staged(values, bytes);
    gpus_->all_reduce(there.raw(), count, dtype, op);
    fetch(values, there, bytes);
  }
  void do_broadcast(void* values, std::size_t bytes, int root) override {
    const Tensor there = staged(values, bytes);
    gpus_->broadcast(there.raw(), bytes, root);
    fetch(values, there, bytes);
  }
  void do_all_gather(const void* mine, void* all, std::size_t bytes_each) override {
    const Tensor there = staged(mine, bytes_each), gathered = room(bytes_each * static_cast<std::size_t>(size()));
    gpus_->all_gather(there.raw(), gathered.raw(), bytes_each);
    fetch(all, gathered, gathered.nbytes());
  }
  void do_barrier() override {
    float one = 1;
    do_all_reduce(&one, 1, DType::f32, ReduceOp::sum);
  }
  void do_exchange(const void* send, std::size_t send_bytes, void* recv, std::size_t recv_bytes, int peer) override {
    const Tensor there = staged(send, send_bytes), got = room(recv_bytes);
    gpus_->exchange(there.raw(), send_bytes, got.raw(), recv_bytes, peer);
    fetch(recv, got, recv_bytes);
  }

 private:
  Tensor room(std::size_t bytes) const { return empty({static_cast<std::int64_t>(bytes)}, DType::u8, gpus_->stream()); }
  Tensor staged(const void* values, std::size_t bytes) const {
    Tensor there = room(bytes);
    copy_bytes(there.raw(), gpus_->stream(), values, Stream{}, bytes);
    return there;
  }
  void fetch(void* values, const Tensor& there, std::size_t bytes) const {
    copy_bytes(values, Stream{}, there.raw(), gpus_->stream(), bytes);
  }

  int local_rank_;
  DeviceCollectives* gpus_ = nullptr;
};

}  // namespace

std::unique_ptr<DeviceCollectives> make_nccl_collectives(Communicator& host, Device device, double timeout_seconds) {
  main_stream(device);  // makes the device this thread's
  const std::string id = host.broadcast(host.rank() == 0 ? bytes_of(new_id()) : std::string(), 0, "the id of the GPUs");
  return std::make_unique<NcclCollectives>(host, host.progress(), device, id_of(id), timeout_seconds);
}

std::unique_ptr<Communicator> make_nccl_communicator(const Launch& launch, const std::string& folder,
                                                     double timeout_seconds) {
  return std::make_unique<NcclCommunicator>(launch, folder, timeout_seconds);
}

}  // namespace sieve
