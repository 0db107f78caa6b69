// Threads of one process as ranks: what a distributed piece does can be tested without a launcher, under a debugger and
// under ThreadSanitizer. A rank that throws makes all others stop waiting.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "dist/communicator.h"

namespace sieve::testing {

// What the ranks share. Data moves under the mutex: this is for tests, not for speed.
struct ThreadWorld {
  explicit ThreadWorld(int ranks) : size(ranks), published(static_cast<std::size_t>(ranks)) {}
  struct Message {
    const void* data;
    std::size_t bytes;
  };
  const int size;
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::pair<int, int>, Message> mail;  // (from, to)
  std::vector<void*> published;
  int waiting = 0;
  std::uint64_t generation = 0;
};

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadWorld> world, int rank)
      : Communicator(rank, world->size), world_(std::move(world)) {}
  std::string_view backend() const override { return "threads"; }
  int local_rank() const override { return rank(); }

 protected:
  void do_all_reduce(void* values, std::int64_t count, DType dtype, ReduceOp op) override {
    switch (dtype) {
      case DType::f32: return reduce<float>(values, count, op);
      case DType::f64: return reduce<double>(values, count, op);
      case DType::i32: return reduce<std::int32_t>(values, count, op);
      default: return reduce<std::int64_t>(values, count, op);
    }
  }
  void do_broadcast(void* values, std::size_t bytes, int root) override {
    meet(values);
    if (rank() != root) std::memcpy(values, world_->published[static_cast<std::size_t>(root)], bytes);
    meet();
  }
  void do_all_gather(const void* mine, void* all, std::size_t bytes_each) override {
    meet(const_cast<void*>(mine));
    for (std::size_t r = 0; r < world_->published.size(); ++r)
      std::memcpy(static_cast<char*>(all) + r * bytes_each, world_->published[r], bytes_each);
    meet();
  }
  void do_barrier() override { meet(); }
  void do_exchange(const void* send, std::size_t send_bytes, void* recv, std::size_t recv_bytes, int peer) override {
    std::unique_lock lock(world_->mutex);
    world_->mail[{rank(), peer}] = {send, send_bytes};
    world_->changed.notify_all();
    wait(lock, [&] { return world_->mail.count({peer, rank()}) > 0; });
    const ThreadWorld::Message message = world_->mail[{peer, rank()}];
    require(message.bytes == recv_bytes, "threads", "rank ", peer, " sends ", message.bytes, " bytes, rank ", rank(),
            " wants ", recv_bytes);
    std::memcpy(recv, message.data, recv_bytes);
    world_->mail.erase({peer, rank()});
    world_->changed.notify_all();
    wait(lock, [&] { return world_->mail.count({rank(), peer}) == 0; });
  }

 private:
  template <class T>
  void reduce(void* values, std::int64_t count, ReduceOp op) {
    const auto n = static_cast<std::size_t>(count);
    meet(values);
    std::vector<T> out(n);
    for (int r = 0; r < size(); ++r) {
      const T* in = static_cast<const T*>(world_->published[static_cast<std::size_t>(r)]);
      for (std::size_t i = 0; i < n; ++i)
        out[i] = r == 0 ? in[i] : op == ReduceOp::sum ? out[i] + in[i] : std::max(out[i], in[i]);
    }
    meet();
    std::memcpy(values, out.data(), n * sizeof(T));
  }

  template <class Condition>
  void wait(std::unique_lock<std::mutex>& lock, const Condition& condition) {
    while (!world_->changed.wait_for(lock, std::chrono::milliseconds(5), condition)) {
      if (abandoned()) fail(Exit::peer, "threads", "gave up waiting in ", progress().where());
    }
  }

  // A barrier at which every rank shows a pointer. It stays on show while others still read: those meet() again without
  // one.
  void meet(void* pointer) {
    {
      std::lock_guard lock(world_->mutex);
      world_->published[static_cast<std::size_t>(rank())] = pointer;
    }
    meet();
  }
  void meet() {
    std::unique_lock lock(world_->mutex);
    if (++world_->waiting == world_->size) {
      world_->waiting = 0;
      ++world_->generation;
      world_->changed.notify_all();
      return;
    }
    wait(lock, [this, mine = world_->generation] { return world_->generation != mine; });
  }

  std::shared_ptr<ThreadWorld> world_;
};

// Runs f once per rank, each in its own thread, and rethrows the first failure that was not the echo of another one.
inline void run_ranks(int ranks, const std::function<void(Communicator&)>& f) {
  auto world = std::make_shared<ThreadWorld>(ranks);
  std::vector<std::unique_ptr<ThreadCommunicator>> comms;
  for (int r = 0; r < ranks; ++r) comms.push_back(std::make_unique<ThreadCommunicator>(world, r));
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      try {
        f(*comms[static_cast<std::size_t>(r)]);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
        for (auto& comm : comms) comm->abandon();
      }
    });
  }
  for (auto& t : threads) t.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace sieve::testing
