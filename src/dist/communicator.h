// Typed collectives between the ranks of a run. A world of one is a real communicator, so that one process and many
// take the same path.
//
// Every rank calls the same collectives in the same order with the same shapes and dtypes, on contiguous tensors. Those
// in CPU memory are done when a call returns. Those on a GPU go another way (DeviceCollectives, by NCCL) and are
// queued: behind what the tensor's stream holds at the call, and later work of that stream waits for them. One thread
// at a time: while a GradientReducer is between begin_step() and finish(), it is that thread; a second one fails
// loudly. `what` names the data ("bucket 3", "step summary") and ends up in the message when a peer is lost. Failures
// throw Error(Exit::peer); wrong arguments throw Error(Exit::internal).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dist/progress.h"
#include "tensor/runtime.h"
#include "tensor/tensor.h"

namespace sieve {

enum class ReduceOp { sum, max };

// Collectives on memory of the ranks' GPUs, queued on a stream of their own. Arguments were checked; sizes may be 0 on
// one side of an exchange. Failures throw Error(Exit::peer).
class DeviceCollectives {
 public:
  virtual ~DeviceCollectives() = default;
  virtual std::string_view backend() const = 0;  // "nccl"
  virtual Stream stream() const = 0;
  virtual void all_reduce(void* values, std::int64_t count, DType dtype, ReduceOp op) = 0;
  virtual void reduce(void* values, std::int64_t count, DType dtype, int root) = 0;  // sum
  virtual void broadcast(void* values, std::size_t bytes, int root) = 0;
  virtual void all_gather(const void* mine, void* all, std::size_t bytes_each) = 0;
  virtual void exchange(const void* send, std::size_t send_bytes, void* recv, std::size_t recv_bytes, int peer) = 0;
};

class Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  virtual std::string_view backend() const = 0;  // "self", "mpi", "nccl"
  virtual int local_rank() const { return 0; }   // among the ranks of this machine
  // From now on tensors of the GPU of `devices` are reduced there. A world of one needs none.
  void connect(std::unique_ptr<DeviceCollectives> devices);
  bool connected() const { return devices_ != nullptr; }
  Progress& progress() { return progress_; }  // marked around every collective; the watchdog reads it

  // In place; f32, f64, i32, i64. The order of the additions is the backend's: for sums that must not depend on the
  // number of ranks see dist/tree.h.
  void all_reduce(Tensor& values, ReduceOp op, std::string_view what);
  void reduce(Tensor& values, int root, std::string_view what);     // sum; only root's values count afterwards
  void broadcast(Tensor& values, int root, std::string_view what);  // any dtype
  Tensor all_gather(const Tensor& mine, std::string_view what);  // any dtype; (size, shape of mine...), in rank order
  void barrier(std::string_view what);
  // Sends to `peer` and receives from it. The sizes may differ and may be 0 (peer's recv is as large as this send);
  // both ranks call it.
  void exchange(const Tensor& send, Tensor& recv, int peer, std::string_view what);

  // Small host values. Combined in rank order: the same bits on every rank.
  double all_reduce(double value, ReduceOp op, std::string_view what);
  std::int64_t all_reduce(std::int64_t value, ReduceOp op, std::string_view what);
  bool any(bool value, std::string_view what);
  std::vector<double> all_gather(double value, std::string_view what);
  std::vector<std::int64_t> all_gather(std::int64_t value, std::string_view what);
  std::string broadcast(const std::string& text, int root, std::string_view what);  // only root's text counts

  // Where collectives of tensors of this device run: work between two of them (the additions of a tree) goes there.
  Stream stream_for(Device device) const;
  // Collectives of GPU tensors beside other work: while one of these lives, `compute` does not wait for them; it does
  // when the outermost one ends.
  class Overlap {
   public:
    Overlap(Communicator& comm, const Stream& compute);
    ~Overlap();  // as end(), but failures stay unheard
    Overlap(const Overlap&) = delete;
    Overlap& operator=(const Overlap&) = delete;
    void end();

   private:
    Communicator& comm_;
    Stream compute_;
    bool open_ = true;
  };

  // On a failure path only: what waits for a peer now, and whatever is called later, throws Error(Exit::peer).
  void abandon() { abandoned_.store(true, std::memory_order_relaxed); }
  bool abandoned() const { return abandoned_.load(std::memory_order_relaxed); }

 protected:
  Communicator(int rank, int size);
  // Arguments are checked by the public functions; sizes are bytes of any magnitude.
  virtual void do_all_reduce(void* values, std::int64_t count, DType dtype, ReduceOp op) = 0;
  virtual void do_reduce(void* values, std::int64_t count, DType dtype, int) {
    do_all_reduce(values, count, dtype, ReduceOp::sum);
  }
  virtual void do_broadcast(void* values, std::size_t bytes, int root) = 0;
  virtual void do_all_gather(const void* mine, void* all, std::size_t bytes_each) = 0;
  virtual void do_barrier() = 0;
  virtual void do_exchange(const void* send, std::size_t send_bytes, void* recv, std::size_t recv_bytes, int peer) = 0;

 private:
  class Call;
  // For a GPU tensor: f(collectives) on their stream, between the two waits. A world of one has nothing to do.
  template <class F>
  void on_device(const Tensor& tensor, const F& f);
  void enter(const Stream& compute);
  void leave(const Stream& compute);

  std::unique_ptr<DeviceCollectives> devices_;
  std::unique_ptr<Event> entered_, left_;
  int overlaps_ = 0;
  int rank_, size_;
  Progress progress_;
  std::atomic<bool> abandoned_{false}, busy_{false};
};

class SelfCommunicator final : public Communicator {
 public:
  SelfCommunicator() : Communicator(0, 1) {}
  std::string_view backend() const override { return "self"; }

 protected:
  void do_all_reduce(void*, std::int64_t, DType, ReduceOp) override {}
  void do_broadcast(void*, std::size_t, int) override {}
  void do_all_gather(const void* mine, void* all, std::size_t bytes_each) override;
  void do_barrier() override {}
  void do_exchange(const void* send, std::size_t send_bytes, void* recv, std::size_t recv_bytes, int peer) override;
};

// The communicator of this process: MPI where mpirun (any size) or srun (more than one task) started it, a world of one
// otherwise; NCCL alone where SIEVE_NCCL_INIT=file:<folder> says so (dist/launch.h). A distributed run that cannot
// start throws Error(Exit::peer): it never becomes a world of one. Keep it alive beside main()'s catch, so that an
// error reaches die() before MPI would be finalised:
//   auto comm = make_communicator();
//   try { return int(run(*comm)); } catch (const Error& e) { die(e.code(), e.what()); }
std::unique_ptr<Communicator> make_communicator();

}  // namespace sieve
