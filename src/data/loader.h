// Batches for training, made ahead by a thread. B rows, T tokens per row.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "data/batch.h"
#include "data/sampler.h"
#include "data/token_source.h"

namespace sieve {

// Numbered micro-batches without end: what a Loader reads ahead.
class BatchSet {
 public:
  virtual ~BatchSet() = default;
  virtual Batch micro_batch(std::int64_t index, std::int64_t rows) const = 0;  // thread-safe
};

// The training corpus as numbered micro-batches. Rows of micro-batch m are samples mB .. mB + B - 1: a pure function of
// (seed, m).
class TrainingSet final : public BatchSet {
 public:
  struct Source {
    std::shared_ptr<const TokenSource> tokens;
    std::optional<double> weight;
  };
  // Exit::data, naming the source, when a text is shorter than one sequence (seq_len + 1 tokens).
  TrainingSet(std::vector<Source> sources, std::int64_t seq_len, std::uint64_t seed, bool document_mask);

  Batch micro_batch(std::int64_t index, std::int64_t rows) const override;
  const Sampler& sampler() const { return sampler_; }
  std::int64_t seq_len() const { return seq_len_; }
  std::int64_t tokens() const;  // of all sources
  std::int64_t epoch_tokens() const {
    return sampler_.epoch_samples() * seq_len_;
  }  // targets in one pass over everything

 private:
  std::vector<Source> sources_;
  std::int64_t seq_len_;
  bool document_mask_;
  Sampler sampler_;
};

// Which micro-batches a rank works on. A step has `per_step` of them, numbered step * per_step ...; rank r takes the
// r-th contiguous part, which makes them neighbouring leaves of the reduction tree.
struct MicroBatchRange {
  std::int64_t per_step = 1;  // a multiple of world
  int rank = 0, world = 1;
  std::int64_t per_rank() const { return per_step / world; }
  // Global index of micro-batch `i` (0 <= i < per_rank()) of step `step`.
  std::int64_t index(std::int64_t step, std::int64_t i) const { return step * per_step + rank * per_rank() + i; }
};

// Delivers the rank's micro-batches from the first of `first_step` on, in order, without end.
class Loader {
 public:
  struct Stats {
    std::int64_t batches = 0;  // delivered
    double wait_seconds = 0;   // spent in next() waiting for data
    double build_seconds = 0;  // spent by the thread making batches
  };
  // prefetch: batches kept ready, 0 = made inside next() with no thread.
  Loader(std::shared_ptr<const BatchSet> set, std::int64_t rows, const MicroBatchRange& range, std::int64_t first_step,
         int prefetch);
  ~Loader();  // joins the thread, at most one batch later
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  Batch next();  // rethrows what the thread threw, on every call from then on
  Stats stats() const;

 private:
  void run();
  std::int64_t index_of(std::int64_t n) const;

  std::shared_ptr<const BatchSet> set_;
  std::int64_t rows_, first_step_;
  MicroBatchRange range_;
  std::size_t prefetch_;
  mutable std::mutex mutex_;
  std::condition_variable ready_, room_;
  std::deque<Batch> queue_;
  std::exception_ptr error_;
  bool stop_ = false;
  std::int64_t delivered_ = 0;
  Stats stats_;
  std::thread thread_;  // last: starts when everything above exists
};

}  // namespace sieve
