#include "dist/communicator.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "core/build.h"
#include "dist/launch.h"
#include "dist/mpi_communicator.h"
#include "dist/nccl_communicator.h"

namespace sieve {

// Surrounds one collective: names it for the watchdog, and refuses a second thread. Two threads whose collectives
// interleave differently on two ranks would deadlock or mix up messages, silently and rarely: better loudly and at
// once.
class Communicator::Call {
 public:
  Call(Communicator& comm, const std::string& operation) : comm_(comm), scope_(comm.progress_, operation) {
    require(!comm_.busy_.exchange(true), "communicator", operation,
            " while another thread is in a collective: ", comm_.progress_.where());
    if (comm_.abandoned()) {
      comm_.busy_.store(false);
      fail(Exit::peer, "communicator", operation, ": this communicator was given up after an earlier failure");
    }
  }
  ~Call() { comm_.busy_.store(false); }

 private:
  Communicator& comm_;
  Progress::Scope scope_;
};

namespace {

constexpr double kMeetingSeconds = 300;  // that ranks of one job may start apart

void check(const Tensor& t, std::string_view operation, std::string_view what) {
  require(t.defined(), "communicator", operation, "(", what, ") of an undefined tensor");
  require(t.is_contiguous(), "communicator", operation, "(", what, ") of a strided view ", t.shape());
}

template <class T>
T combine(const std::vector<T>& values, ReduceOp op) {
  T out = values[0];
  for (std::size_t i = 1; i < values.size(); ++i)
    out = op == ReduceOp::sum ? out + values[i] : std::max(out, values[i]);
  return out;
}

}  // namespace

Communicator::Communicator(int rank, int size) : rank_(rank), size_(size) {
  require(size >= 1 && rank >= 0 && rank < size, "communicator", "rank ", rank, " of ", size);
}

// First of all: it speaks to Progress and asks whether this was abandoned.
Communicator::~Communicator() { devices_.reset(); }

void Communicator::connect(std::unique_ptr<DeviceCollectives> devices) {
  entered_ = std::make_unique<Event>(devices->stream().device);
  left_ = std::make_unique<Event>(devices->stream().device);
  devices_ = std::move(devices);
}

Stream Communicator::stream_for(Device device) const {
  return device.is_cuda() && devices_ ? devices_->stream() : main_stream(device);
}

void Communicator::enter(const Stream& compute) {
  entered_->record(compute);
  entered_->wait_on(devices_->stream());
}

void Communicator::leave(const Stream& compute) {
  left_->record(devices_->stream());
  left_->wait_on(compute);
}

template <class F>
void Communicator::on_device(const Tensor& tensor, const F& f) {
  if (size_ == 1) return;
  require(devices_ && devices_->stream().device == tensor.device(), "communicator",
          "the ranks' GPUs are not connected: ", tensor.device().str(),
          build::with_nccl ? "" : " (this program was built without NCCL)");
  enter(tensor.stream());
  f(*devices_);
  if (overlaps_ == 0) leave(tensor.stream());
}

Communicator::Overlap::Overlap(Communicator& comm, const Stream& compute) : comm_(comm), compute_(compute) {
  ++comm_.overlaps_;
}

void Communicator::Overlap::end() {
  if (!open_) return;
  open_ = false;
  if (--comm_.overlaps_ == 0 && comm_.devices_ && compute_.device.is_cuda()) comm_.leave(compute_);
}

Communicator::Overlap::~Overlap() {
  try {
    end();
  } catch (const Error&) {}  // a failed device: whoever waits for the stream hears of it
}

void Communicator::all_reduce(Tensor& values, ReduceOp op, std::string_view what) {
  check(values, "all_reduce", what);
  const DType t = values.dtype();
  require(t == DType::f32 || t == DType::f64 || t == DType::i32 || t == DType::i64, "communicator", "all_reduce(", what,
          ") of ", name_of(t), ": sums want f32, f64, i32 or i64");
  Call call(*this, cat("all_reduce(", what, ")"));
  if (values.numel() == 0) return;
  if (values.device().is_cuda())
    return on_device(values, [&](auto& d) { d.all_reduce(values.raw(), values.numel(), t, op); });
  do_all_reduce(values.raw(), values.numel(), t, op);
}

void Communicator::reduce(Tensor& values, int root, std::string_view what) {
  check(values, "reduce", what);
  require(is_float(values.dtype()) && values.dtype() != DType::bf16, "communicator", "reduce(", what, ") of ",
          name_of(values.dtype()));
  require(root >= 0 && root < size_, "communicator", "reduce(", what, ") to rank ", root, " of ", size_);
  Call call(*this, cat("reduce(", what, ")"));
  if (values.numel() == 0) return;
  if (values.device().is_cuda())
    return on_device(values, [&](auto& d) { d.reduce(values.raw(), values.numel(), values.dtype(), root); });
  do_reduce(values.raw(), values.numel(), values.dtype(), root);
}

void Communicator::broadcast(Tensor& values, int root, std::string_view what) {
  check(values, "broadcast", what);
  require(root >= 0 && root < size_, "communicator", "broadcast(", what, ") from rank ", root, " of ", size_);
  Call call(*this, cat("broadcast(", what, ")"));
  if (values.numel() == 0) return;
  if (values.device().is_cuda())
    return on_device(values, [&](auto& d) { d.broadcast(values.raw(), values.nbytes(), root); });
  do_broadcast(values.raw(), values.nbytes(), root);
}

Tensor Communicator::all_gather(const Tensor& mine, std::string_view what) {
  check(mine, "all_gather", what);
  std::vector<std::int64_t> extents{size_};
  extents.insert(extents.end(), mine.shape().begin(), mine.shape().end());
  Tensor all = empty(Shape(std::span<const std::int64_t>(extents)), mine.dtype(), mine.stream());
  Call call(*this, cat("all_gather(", what, ")"));
  if (mine.numel() == 0) return all;
  if (mine.device().is_cuda()) {
    if (size_ == 1) all.flatten().copy_from(mine.flatten());
    on_device(mine, [&](auto& d) { d.all_gather(mine.raw(), all.raw(), mine.nbytes()); });
  } else {
    do_all_gather(mine.raw(), all.raw(), mine.nbytes());
  }
  return all;
}

void Communicator::barrier(std::string_view what) {
  Call call(*this, cat("barrier(", what, ")"));
  do_barrier();
}

void Communicator::exchange(const Tensor& send, Tensor& recv, int peer, std::string_view what) {
  check(send, "exchange", what);
  check(recv, "exchange", what);
  require(peer >= 0 && peer < size_ && peer != rank_, "communicator", "exchange(", what, ") of rank ", rank_,
          " with rank ", peer, " of ", size_);
  Call call(*this, what.empty() ? cat("exchange with rank ", peer) : cat("exchange(", what, ") with rank ", peer));
  require(send.device() == recv.device(), "communicator", "exchange(", what, ") from ", send.device().str(), " to ",
          recv.device().str());
  if (send.numel() + recv.numel() == 0) return;
  if (send.device().is_cuda())
    return on_device(send, [&](auto& d) { d.exchange(send.raw(), send.nbytes(), recv.raw(), recv.nbytes(), peer); });
  do_exchange(send.raw(), send.nbytes(), recv.raw(), recv.nbytes(), peer);
}

std::vector<double> Communicator::all_gather(double value, std::string_view what) {
  std::vector<double> all(static_cast<std::size_t>(size_));
  Call call(*this, cat("all_gather(", what, ")"));
  do_all_gather(&value, all.data(), sizeof value);
  return all;
}

std::vector<std::int64_t> Communicator::all_gather(std::int64_t value, std::string_view what) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(size_));
  Call call(*this, cat("all_gather(", what, ")"));
  do_all_gather(&value, all.data(), sizeof value);
  return all;
}

double Communicator::all_reduce(double value, ReduceOp op, std::string_view what) {
  return combine(all_gather(value, what), op);
}

std::int64_t Communicator::all_reduce(std::int64_t value, ReduceOp op, std::string_view what) {
  return combine(all_gather(value, what), op);
}

bool Communicator::any(bool value, std::string_view what) {
  return all_reduce(std::int64_t{value}, ReduceOp::max, what) != 0;
}

std::string Communicator::broadcast(const std::string& text, int root, std::string_view what) {
  require(root >= 0 && root < size_, "communicator", "broadcast(", what, ") from rank ", root, " of ", size_);
  Call call(*this, cat("broadcast(", what, ")"));
  auto size = static_cast<std::uint64_t>(text.size());
  do_broadcast(&size, sizeof size, root);
  std::string out = text;
  out.resize(size);
  if (size > 0) do_broadcast(out.data(), size, root);
  return out;
}

void SelfCommunicator::do_all_gather(const void* mine, void* all, std::size_t bytes_each) {
  std::memcpy(all, mine, bytes_each);
}

void SelfCommunicator::do_exchange(const void*, std::size_t, void*, std::size_t, int) {
  fail(Exit::internal, "communicator", "exchange in a world of one");  // no peer passes the check of exchange()
}

std::unique_ptr<Communicator> make_communicator() {
  const Launch launch = detect_launch();
  if (!launch.meeting_folder.empty() && launch.size > 1) {
    if constexpr (build::with_nccl) return make_nccl_communicator(launch, launch.meeting_folder, kMeetingSeconds);
    fail(Exit::peer, "communicator", "SIEVE_NCCL_INIT is set, but this program was built without NCCL");
  }
  // mpirun -n 1 goes through MPI as well: the same path as n ranks. One task of srun does not: Open MPI without Slurm's
  // PMI refuses to start there, and a single process needs no MPI.
  if (launch.launcher == Launcher::mpirun || launch.size > 1) {
    if constexpr (build::with_mpi) {
      return make_mpi_communicator(launch);
    } else if (launch.size > 1) {
      fail(Exit::peer, "communicator", "started as rank ", launch.rank, " of ", launch.size,
           ", but this program was built without MPI: install libopenmpi-dev and build again, or start one process");
    }
  }
  return std::make_unique<SelfCommunicator>();
}

}  // namespace sieve
