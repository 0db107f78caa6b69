// MPI_Init_thread, MPI_Finalize and the thread that may call MPI.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace sieve {

struct MpiOptions {
  bool funneled = false;                           // act as if the library gave no MPI_THREAD_MULTIPLE
  std::size_t chunk_bytes = std::size_t{1} << 30;  // MPI counts are int: larger messages go in pieces
};

class MpiSession {
 public:
  explicit MpiSession(const MpiOptions& options);
  ~MpiSession();  // finalises, but not while an exception unwinds: MPI_Finalize would wait for the other ranks
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool multiple() const { return multiple_; }
  void skip_finalize();  // after a failure that was no exception here

  // Runs f, which calls MPI. With MPI_THREAD_MULTIPLE in the caller, otherwise in the one thread that initialised MPI;
  // returns when done and rethrows what f threw.
  void call(const std::function<void()>& f);

 private:
  void run(const MpiOptions& options);

  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* job_ = nullptr;
  std::exception_ptr error_;
  bool started_ = false, stop_ = false, finalize_ = true, multiple_ = false;
  int rank_ = 0, size_ = 1, unwinding_ = 0;
  std::thread thread_;
};

}  // namespace sieve
