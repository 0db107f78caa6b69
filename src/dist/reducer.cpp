#include "dist/reducer.h"

#include <algorithm>
#include <chrono>

#include "core/parallel_for.h"
#include "dist/tree.h"

namespace sieve {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

constexpr std::int64_t kAlign = 16;  // floats: every gradient starts at a cache line

// The running sum of the fast mode, in the tree's terms.
TreeStep running_sum(std::int64_t index) {
  TreeStep step;
  step.source_count = index > 0 ? 1 : 0;
  return step;
}

// Eight lanes, summed in a fixed order: vectorises and stays the same on every machine.
double squares(const float* g, std::int64_t n) {
  double lanes[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int l = 0; l < 8; ++l) lanes[l] += static_cast<double>(g[i + l]) * static_cast<double>(g[i + l]);
  }
  for (; i < n; ++i) lanes[i % 8] += static_cast<double>(g[i]) * static_cast<double>(g[i]);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

}  // namespace

GradientReducer::GradientReducer(Communicator& comm, std::vector<GradientSlot> parameters,
                                 const ReducerOptions& options)
    : comm_(comm), options_(options) {
  require(options.bucket_bytes > 0, "reducer", "bucket of ", options.bucket_bytes, " bytes");
  places_.resize(parameters.size());
  for (std::size_t i = parameters.size(); i-- > 0;) {
    const std::int64_t numel = parameters[i].shape.numel();
    const std::int64_t bytes = checked_product(numel, sizeof(float), parameters[i].name);
    if (buckets_.empty() || (buckets_.back().numel > 0 &&
                             buckets_.back().numel * std::int64_t{sizeof(float)} + bytes > options.bucket_bytes))
      buckets_.emplace_back();
    Bucket& bucket = buckets_.back();
    places_[i] = {std::move(parameters[i]), static_cast<std::int64_t>(buckets_.size()) - 1, bucket.numel, numel};
    bucket.numel += (numel + kAlign - 1) / kAlign * kAlign;
    ++bucket.parameters;
  }
  complete_.assign(buckets_.size(), 0);
  side_ = std::thread([this] { run(); });
}

GradientReducer::~GradientReducer() {
  // Mid-step only an error brings us here. The side thread may be waiting for a peer that has failed as well.
  if (in_step_) comm_.abandon();
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  side_.join();
}

int GradientReducer::buffers(std::int64_t micro_batches, bool deterministic) {
  return deterministic ? tree_slots(micro_batches) : 1;
}

void GradientReducer::begin_step(std::int64_t micro_batches) {
  require(!in_step_, "reducer", "begin_step in the middle of a step");
  require(micro_batches >= 1, "reducer", micro_batches, " micro-batches");
  const auto wanted = static_cast<std::size_t>(buffers(micro_batches, options_.deterministic));
  for (Bucket& bucket : buckets_) {
    bucket.slots.resize(wanted);
    for (Tensor& slot : bucket.slots) {
      // Zeros, because the gaps between parameters are sent and added too.
      if (!slot.defined()) slot = zeros({bucket.numel}, DType::f32);
    }
    bucket.seen = 0;
  }
  for (Place& place : places_) place.seen = false;
  micro_batches_ = micro_batches;
  micro_batch_ = 0;
  std::lock_guard lock(mutex_);
  std::fill(complete_.begin(), complete_.end(), 0);
  released_ = reduced_ = 0;
  reduce_seconds_ = 0;
  in_step_ = true;
}

void GradientReducer::ready(std::int64_t parameter, const Tensor& grad) {
  require(parameter >= 0 && parameter < parameters(), "reducer", "parameter ", parameter, " of ", parameters());
  Place& place = places_[static_cast<std::size_t>(parameter)];
  const std::string& name = place.slot.name;
  require(in_step_ && micro_batch_ < micro_batches_, "reducer", name, ": ready outside of a step");
  require(!place.seen, "reducer", name, ": ready twice in micro-batch ", micro_batch_);
  require(grad.defined() && grad.shape() == place.slot.shape, "reducer", name, ": gradient ",
          grad.defined() ? grad.shape().str() : "undefined", " for ", place.slot.shape);
  accumulate(place, grad.contiguous().data<float>());
}

void GradientReducer::accumulate(Place& place, const float* grad) {
  Bucket& bucket = buckets_[static_cast<std::size_t>(place.bucket)];
  const TreeStep step = options_.deterministic ? tree_step(micro_batches_, micro_batch_) : running_sum(micro_batch_);
  float* dest = bucket.slots[static_cast<std::size_t>(step.dest)].data<float>() + place.offset;
  parallel_for(place.numel, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
    const float* sources[64];
    for (int s = 0; s < step.source_count; ++s) {
      const auto slot = static_cast<std::size_t>(step.sources[static_cast<std::size_t>(s)]);
      sources[s] = bucket.slots[slot].data<float>() + place.offset + begin;
    }
    add_chain(dest + begin, sources, step.source_count, grad ? grad + begin : nullptr, end - begin);
  });
  place.seen = true;
  if (++bucket.seen == bucket.parameters && micro_batch_ == micro_batches_ - 1) release(place.bucket);
}

void GradientReducer::release(std::int64_t bucket) {
  {
    std::lock_guard lock(mutex_);
    complete_[static_cast<std::size_t>(bucket)] = 1;
    while (released_ < bucket_count() && complete_[static_cast<std::size_t>(released_)]) ++released_;
  }
  changed_.notify_all();
}

void GradientReducer::end_micro_batch() {
  require(in_step_ && micro_batch_ < micro_batches_, "reducer", "end_micro_batch outside of a step");
  for (Place& place : places_) {
    if (!place.seen) accumulate(place, nullptr);
  }
  for (Place& place : places_) place.seen = false;
  for (Bucket& bucket : buckets_) bucket.seen = 0;
  ++micro_batch_;
}

void GradientReducer::finish() {
  require(in_step_ && micro_batch_ == micro_batches_, "reducer", "finish after ", micro_batch_, " of ", micro_batches_,
          " micro-batches");
  const auto begin = Clock::now();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return reduced_ == bucket_count() || error_; });
  if (error_) std::rethrow_exception(error_);  // still in_step_: the destructor abandons the communicator
  stats_ = {seconds_since(begin), reduce_seconds_};
  in_step_ = false;
}

void GradientReducer::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || (reduced_ < released_ && !error_); });
    if (stop_) return;
    const std::int64_t bucket = reduced_;
    lock.unlock();
    const auto begin = Clock::now();
    std::exception_ptr error;
    try {
      reduce(bucket);
    } catch (...) { error = std::current_exception(); }
    lock.lock();
    reduce_seconds_ += seconds_since(begin);
    error ? void(error_ = error) : void(++reduced_);
    changed_.notify_all();
  }
}

void GradientReducer::reduce(std::int64_t bucket) {
  Tensor& sum = buckets_[static_cast<std::size_t>(bucket)].slots[0];
  const std::string what = cat("bucket ", bucket);
  options_.deterministic ? tree_all_reduce(comm_, sum, what) : comm_.all_reduce(sum, ReduceOp::sum, what);
}

Tensor GradientReducer::gradient(std::int64_t parameter) const {
  require(parameter >= 0 && parameter < parameters(), "reducer", "parameter ", parameter, " of ", parameters());
  const Place& place = places_[static_cast<std::size_t>(parameter)];
  const Bucket& bucket = buckets_[static_cast<std::size_t>(place.bucket)];
  require(!in_step_ && !bucket.slots.empty(), "reducer", place.slot.name, ": no finished step holds its gradient");
  return bucket.slots[0].slice(0, place.offset, place.offset + place.numel).reshape(place.slot.shape);
}

double GradientReducer::squared_norm() const {
  constexpr std::int64_t kBlock = 1 << 14;
  struct Piece {
    const float* begin;
    std::int64_t numel;
  };
  std::vector<Piece> pieces;
  for (std::int64_t i = 0; i < parameters(); ++i) {
    const Tensor g = gradient(i);
    for (std::int64_t at = 0; at < g.numel(); at += kBlock)
      pieces.push_back({g.data<float>() + at, std::min(kBlock, g.numel() - at)});
  }
  std::vector<double> sums(pieces.size());
  parallel_for(static_cast<std::int64_t>(pieces.size()), 4, [&](std::int64_t begin, std::int64_t end) {
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
      sums[i] = squares(pieces[i].begin, pieces[i].numel);
  });
  double total = 0;
  for (double s : sums) total += s;
  return total;
}

std::int64_t GradientReducer::bytes() const {
  std::int64_t total = 0;
  for (const Bucket& bucket : buckets_)
    total += bucket.numel * std::int64_t{sizeof(float)} * static_cast<std::int64_t>(bucket.slots.size());
  return total;
}

}  // namespace sieve
