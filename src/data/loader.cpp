#include "data/loader.h"

#include <chrono>

#include "core/error.h"

namespace sieve {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::vector<SampledSource> sampled(const std::vector<TrainingSet::Source>& sources, std::int64_t seq_len) {
  std::vector<SampledSource> out;
  for (const auto& s : sources) {
    require(s.tokens != nullptr, "data", "a source without tokens");
    const std::int64_t n = sequence_count(s.tokens->tokens(), seq_len);
    if (n < 1) {
      fail(Exit::data, "data", s.tokens->name(), ": the text is shorter than one sequence: ", s.tokens->tokens(),
           " tokens, and a sequence of ", seq_len, " needs ", seq_len + 1, "; lower data.seq_len or give more text");
    }
    out.push_back({s.tokens->name(), n, s.weight});
  }
  return out;
}

}  // namespace

TrainingSet::TrainingSet(std::vector<Source> sources, std::int64_t seq_len, std::uint64_t seed, bool document_mask)
    : sources_(std::move(sources)),
      seq_len_(seq_len),
      document_mask_(document_mask),
      sampler_(sampled(sources_, seq_len), seed) {}

Batch TrainingSet::micro_batch(std::int64_t index, std::int64_t rows) const {
  require(index >= 0 && rows >= 1, "data", "micro-batch ", index, " of ", rows, " rows");
  Batch batch = empty_batch(index, rows, seq_len_, document_mask_);
  for (std::int64_t row = 0; row < rows; ++row) {
    const Sample s = sampler_(index * rows + row);
    fill_row(batch, row, *sources_[static_cast<std::size_t>(s.source)].tokens, s.sequence * seq_len_, seq_len_);
  }
  drop_idle_mask(batch);
  return batch;
}

std::int64_t TrainingSet::tokens() const {
  std::int64_t sum = 0;
  for (const Source& s : sources_) sum += s.tokens->tokens();
  return sum;
}

Loader::Loader(std::shared_ptr<const BatchSet> set, std::int64_t rows, const MicroBatchRange& range,
               std::int64_t first_step, int prefetch)
    : set_(std::move(set)),
      rows_(rows),
      first_step_(first_step),
      range_(range),
      prefetch_(static_cast<std::size_t>(prefetch)) {
  require(prefetch >= 0 && rows >= 1 && first_step >= 0, "loader", "prefetch ", prefetch, ", rows ", rows, ", step ",
          first_step);
  require(range.world >= 1 && range.rank >= 0 && range.rank < range.world && range.per_step >= range.world &&
              range.per_step % range.world == 0,
          "loader", range.per_step, " micro-batches a step for rank ", range.rank, " of ", range.world);
  if (prefetch_ > 0) thread_ = std::thread(&Loader::run, this);
}

Loader::~Loader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  room_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::int64_t Loader::index_of(std::int64_t n) const {
  return range_.index(first_step_ + n / range_.per_rank(), n % range_.per_rank());
}

void Loader::run() {
  for (std::int64_t n = 0;; ++n) {
    {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [&] { return stop_ || queue_.size() < prefetch_; });
      if (stop_) return;
    }
    const auto start = Clock::now();
    Batch batch;
    std::exception_ptr error;
    try {
      batch = set_->micro_batch(index_of(n), rows_);
    } catch (...) { error = std::current_exception(); }
    {
      const std::lock_guard lock(mutex_);
      stats_.build_seconds += seconds_since(start);
      error_ = error;
      if (!error) queue_.push_back(std::move(batch));
    }
    ready_.notify_one();
    if (error) return;
  }
}

Batch Loader::next() {
  const auto start = Clock::now();
  if (prefetch_ == 0) {
    Batch batch = set_->micro_batch(index_of(delivered_), rows_);
    const std::lock_guard lock(mutex_);
    ++delivered_;
    ++stats_.batches;
    stats_.build_seconds += seconds_since(start);
    stats_.wait_seconds += seconds_since(start);
    return batch;
  }
  std::unique_lock lock(mutex_);
  ready_.wait(lock, [&] { return !queue_.empty() || error_; });
  stats_.wait_seconds += seconds_since(start);
  if (queue_.empty()) std::rethrow_exception(error_);  // what was ready before it is delivered first
  Batch batch = std::move(queue_.front());
  queue_.pop_front();
  ++stats_.batches;
  lock.unlock();
  room_.notify_one();
  return batch;
}

Loader::Stats Loader::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace sieve
