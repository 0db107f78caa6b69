#include "core/parallel_for.h"

#include <sched.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/build.h"
#include "core/error.h"

#if __has_include(<omp.h>) && defined(_OPENMP)
#include <omp.h>
#else
inline void omp_set_num_threads(int) {}
inline int omp_in_parallel() { return 0; }
#endif

namespace sieve {
namespace {

using Body = std::function<void(std::int64_t, std::int64_t)>;

thread_local bool inside = false;

int default_threads() {
  if (const char* env = std::getenv("OMP_NUM_THREADS")) {
    if (int n = std::atoi(env); n >= 1) return n;
  }
  return available_cores();
}

int& thread_count() {
  static int n = default_threads();
  return n;
}

// Piece `index` of `pieces` of [0, n).
void run_piece(std::int64_t n, int index, int pieces, const Body& f, std::exception_ptr& error) {
  const std::int64_t begin = n * index / pieces, end = n * (index + 1) / pieces;
  inside = true;
  try {
    if (begin < end) f(begin, end);
  } catch (...) { error = std::current_exception(); }
  inside = false;
}

// Workers sleep until a job's generation changes. One job at a time: a second caller waits for the first.
class Pool {
 public:
  ~Pool() { resize(0); }

  void run(std::int64_t n, int pieces, const Body& f, std::vector<std::exception_ptr>& errors) {
    std::lock_guard one_job(job_mutex_);
    if (static_cast<int>(workers_.size()) != pieces - 1) resize(pieces - 1);
    {
      std::lock_guard lock(mutex_);
      job_ = [&, n, pieces](int index) { run_piece(n, index, pieces, f, errors[static_cast<std::size_t>(index)]); };
      pending_ = pieces - 1;
      ++generation_;
    }
    wake_.notify_all();
    job_(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return pending_ == 0; });
  }

 private:
  void resize(int n) {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& w : workers_) w.join();
    workers_.clear();
    stop_ = false;
    for (int i = 1; i <= n; ++i) workers_.emplace_back([this, i, seen = generation_] { work(i, seen); });
  }

  void work(int index, std::uint64_t seen) {
    for (;;) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      lock.unlock();
      job_(index);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  std::mutex job_mutex_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  std::function<void(int)> job_;
  std::uint64_t generation_ = 0;
  int pending_ = 0;
  bool stop_ = false;
};

Pool& pool() {
  static Pool instance;
  return instance;
}

}  // namespace

int available_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_COUNT(&mask) > 0) return CPU_COUNT(&mask);
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

int num_threads() { return thread_count(); }

void set_num_threads(int n) {
  require(n >= 1, "threads", "must be at least 1, got ", n);
  thread_count() = n;
  omp_set_num_threads(n);
}

bool in_parallel_region() { return inside || omp_in_parallel(); }

void parallel_for(std::int64_t n, std::int64_t grain, const Body& f) {
  if (n <= 0) return;
  const std::int64_t wanted = std::max<std::int64_t>(1, n / std::max<std::int64_t>(1, grain));
  const int pieces = static_cast<int>(std::min<std::int64_t>(num_threads(), wanted));
  if (pieces <= 1 || in_parallel_region()) {
    f(0, n);
    return;
  }
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(pieces));
  if constexpr (build::with_openmp) {
#pragma omp parallel for num_threads(pieces) schedule(static, 1)
    for (int i = 0; i < pieces; ++i) run_piece(n, i, pieces, f, errors[static_cast<std::size_t>(i)]);
  } else {
    pool().run(n, pieces, f, errors);
  }
  for (auto& e : errors) {
    if (e) std::rethrow_exception(e);
  }
}

}  // namespace sieve
