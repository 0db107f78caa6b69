#include "dist/mpi_session.h"

#include <mpi.h>

#include <utility>

#include "core/error.h"

namespace sieve {

MpiSession::MpiSession(const MpiOptions& options) : unwinding_(std::uncaught_exceptions()) {
  thread_ = std::thread([this, options] { run(options); });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return started_ || error_; });
  if (!error_) return;
  lock.unlock();
  thread_.join();
  std::rethrow_exception(error_);
}

MpiSession::~MpiSession() {
  {
    std::lock_guard lock(mutex_);
    finalize_ = finalize_ && std::uncaught_exceptions() <= unwinding_;
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void MpiSession::skip_finalize() {
  std::lock_guard lock(mutex_);
  finalize_ = false;
}

void MpiSession::call(const std::function<void()>& f) {
  if (multiple_) return f();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return job_ == nullptr; });
  job_ = &f;
  changed_.notify_all();
  changed_.wait(lock, [this, &f] { return job_ != &f; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void MpiSession::run(const MpiOptions& options) {
  int provided = MPI_THREAD_SINGLE;
  const int wanted = options.funneled ? MPI_THREAD_FUNNELED : MPI_THREAD_MULTIPLE;
  const int failed = MPI_Init_thread(nullptr, nullptr, wanted, &provided);
  std::unique_lock lock(mutex_);
  if (failed != MPI_SUCCESS || provided < MPI_THREAD_FUNNELED) {
    error_ = std::make_exception_ptr(
        Error(Exit::peer, cat("[mpi] MPI_Init_thread failed (code ", failed, ", thread level ", provided, ")")));
    changed_.notify_all();
    return;
  }
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  multiple_ = provided == MPI_THREAD_MULTIPLE;
  started_ = true;
  changed_.notify_all();
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || job_ != nullptr; });
    if (job_ == nullptr) break;
    const std::function<void()>& job = *job_;
    lock.unlock();
    std::exception_ptr error;
    try {
      job();
    } catch (...) { error = std::current_exception(); }
    lock.lock();
    error_ = error;
    job_ = nullptr;
    changed_.notify_all();
  }
  const bool finalize = finalize_;
  lock.unlock();
  if (finalize) MPI_Finalize();  // by the thread that initialised, as the standard demands
}

}  // namespace sieve
