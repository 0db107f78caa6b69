#include "dist/reducer.h"

#include <algorithm>
#include <chrono>

#include "dist/tree.h"
#include "tensor/kernels/kernels.h"

namespace sieve {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// The running sum of the fast mode, in the tree's terms.
TreeStep running_sum(std::int64_t index) {
  TreeStep step;
  step.source_count = index > 0 ? 1 : 0;
  return step;
}

std::vector<Shape> shapes_of(const std::vector<GradientSlot>& slots) {
  std::vector<Shape> shapes;
  for (const GradientSlot& slot : slots) shapes.push_back(slot.shape);
  return shapes;
}

}  // namespace

GradientReducer::GradientReducer(Communicator& comm, std::vector<GradientSlot> parameters,
                                 const ReducerOptions& options, const Stream& stream)
    : comm_(comm), options_(options), stream_(stream), layout_(shapes_of(parameters)) {
  require(options.bucket_bytes > 0, "reducer", "bucket of ", options.bucket_bytes, " bytes");
  places_.resize(parameters.size());
  std::int64_t end = layout_.numel;
  for (std::size_t i = parameters.size(); i-- > 0;) {
    const std::int64_t begin = layout_.begins[i];
    checked_product(end - begin, sizeof(float), parameters[i].name);
    const bool full = !buckets_.empty() && buckets_.back().end > end &&
                      (buckets_.back().end - begin) * std::int64_t{sizeof(float)} > options.bucket_bytes;
    if (buckets_.empty() || full) buckets_.push_back({.begin = end, .end = end});
    buckets_.back().begin = begin;
    ++buckets_.back().parameters;
    places_[i] = {std::move(parameters[i]), static_cast<std::int64_t>(buckets_.size()) - 1};
    end = begin;
  }
  complete_.assign(buckets_.size(), 0);
  if (stream_.device.is_cpu()) side_ = std::thread([this] { run(); });
}

GradientReducer::~GradientReducer() {
  // Mid-step only an error brings us here. The side thread may be waiting for a peer that has failed as well.
  if (in_step_) comm_.abandon();
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (side_.joinable()) side_.join();
}

int GradientReducer::buffers(std::int64_t micro_batches, bool deterministic) {
  return deterministic ? tree_slots(micro_batches) : 1;
}

void GradientReducer::begin_step(std::int64_t micro_batches) {
  require(!in_step_, "reducer", "begin_step in the middle of a step");
  require(micro_batches >= 1, "reducer", micro_batches, " micro-batches");
  const auto wanted = static_cast<std::size_t>(buffers(micro_batches, options_.deterministic));
  slots_.resize(wanted);
  for (Tensor& slot : slots_) {
    // Zeros, because the gaps between parameters are sent and added too.
    if (!slot.defined()) slot = zeros({layout_.numel}, DType::f32, stream_);
  }
  for (Bucket& bucket : buckets_) bucket.seen = 0;
  for (Place& place : places_) place.seen = false;
  micro_batches_ = micro_batches;
  micro_batch_ = 0;
  if (stream_.device.is_cuda()) overlap_.emplace(comm_, stream_);
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
  require(grad.dtype() == DType::f32 && grad.device() == stream_.device, "reducer", name, ": gradient of ",
          name_of(grad.dtype()), " on ", grad.device().str());
  accumulate(static_cast<std::size_t>(parameter), grad.contiguous());
}

void GradientReducer::accumulate(std::size_t parameter, const Tensor& grad) {
  Place& place = places_[parameter];
  Bucket& bucket = buckets_[static_cast<std::size_t>(place.bucket)];
  const TreeStep step = options_.deterministic ? tree_step(micro_batches_, micro_batch_) : running_sum(micro_batch_);
  const std::int64_t begin = layout_.begins[parameter], end = begin + layout_.numels[parameter];
  std::vector<Tensor> slots;
  for (const Tensor& slot : slots_) slots.push_back(slot.slice(0, begin, end));
  if (begin < end) add_leaf(stream_, step, slots, grad);
  place.seen = true;
  if (++bucket.seen == bucket.parameters && micro_batch_ == micro_batches_ - 1) release(place.bucket);
}

void GradientReducer::release(std::int64_t bucket) {
  {
    std::lock_guard lock(mutex_);
    complete_[static_cast<std::size_t>(bucket)] = 1;
    if (!options_.overlap) return;
    while (released_ < bucket_count() && complete_[static_cast<std::size_t>(released_)]) ++released_;
  }
  changed_.notify_all();
  if (stream_.device.is_cuda()) reduce_released();
}

// On a GPU: queued by the thread that runs backward.
void GradientReducer::reduce_released() {
  for (; reduced_ < released_; ++reduced_) reduce(reduced_);
}

void GradientReducer::end_micro_batch() {
  require(in_step_ && micro_batch_ < micro_batches_, "reducer", "end_micro_batch outside of a step");
  for (std::size_t i = 0; i < places_.size(); ++i) {
    if (!places_[i].seen) accumulate(i, Tensor());
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
  released_ = bucket_count();
  if (stream_.device.is_cuda()) {
    reduce_released();
    overlap_->end();
    in_step_ = false;
    return;
  }
  changed_.notify_all();
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

void GradientReducer::reduce(std::int64_t number) {
  const Bucket& bucket = buckets_[static_cast<std::size_t>(number)];
  Tensor sum = slots_[0].slice(0, bucket.begin, bucket.end);
  const std::string what = cat("bucket ", number);
  if (options_.deterministic) return tree_all_reduce(comm_, sum, what);
  if (!sharded()) return comm_.all_reduce(sum, ReduceOp::sum, what);
  for (int owner = 0; owner < comm_.size(); ++owner) {  // a reduce-scatter: each piece goes to its owner
    const auto part = FlatLayout::part(layout_.numel, owner, comm_.size());
    const std::int64_t begin = std::max(part.begin, bucket.begin), end = std::min(part.end, bucket.end);
    if (begin >= end) continue;
    Tensor piece = slots_[0].slice(0, begin, end);
    comm_.reduce(piece, owner, what);
  }
}

Tensor GradientReducer::flat() const {
  require(!in_step_ && !slots_.empty(), "reducer", "no finished step holds a gradient");
  return slots_[0];
}

Tensor GradientReducer::gradient(std::int64_t parameter) const {
  require(parameter >= 0 && parameter < parameters(), "reducer", "parameter ", parameter, " of ", parameters());
  const auto i = static_cast<std::size_t>(parameter);
  return flat().slice(0, layout_.begins[i], layout_.begins[i] + layout_.numels[i]).reshape(places_[i].slot.shape);
}

Tensor GradientReducer::squared_norm() const {
  const auto range =
      sharded() ? FlatLayout::part(layout_.numel, comm_.rank(), comm_.size()) : FlatLayout::Range{0, layout_.numel};
  const Tensor mine = flat().slice(0, range.begin, range.end), sum = empty({}, DType::f64, stream_);
  launch(stream_, SumArgs{.x = mine.raw(), .sum = sum.data<double>(), .n = mine.numel(), .square = true});
  return sum;
}

std::int64_t GradientReducer::bytes() const {
  return layout_.numel * std::int64_t{sizeof(float)} * static_cast<std::int64_t>(slots_.size());
}

}  // namespace sieve
