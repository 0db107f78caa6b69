#include "train/gradient_step.h"

#include <cmath>

#include "core/error.h"
#include "dist/kernels/kernels.h"
#include "dist/tree.h"
#include "tensor/kernels/kernels.h"
#include "train/on_root.h"

namespace sieve {
namespace {

enum Number : std::int64_t { kTokens, kNonfinite, kNorm, kLosses };
constexpr std::int64_t kAhead = 2;  // micro-batches that the host may be ahead of a GPU

std::vector<ParameterPtr> trainable(const Decoder& model) {
  std::vector<ParameterPtr> out;
  for (const auto& p : model.parameters()) {
    if (p->trainable) out.push_back(p);
  }
  return out;
}

std::vector<GradientSlot> slots_of(const std::vector<ParameterPtr>& parameters) {
  std::vector<GradientSlot> slots;
  for (const auto& p : parameters) slots.push_back({p->name, p->master.shape()});
  return slots;
}

}  // namespace

GradientStep::GradientStep(const Decoder& model, Communicator& comm, const ReducerOptions& options,
                           std::int64_t accumulation)
    : model_(model),
      comm_(comm),
      parameters_(trainable(model)),
      reducer_(comm, slots_of(parameters_), options, model.stream()),
      accumulation_(accumulation),
      stream_(model.stream()),
      staging_(stream_),
      numbers_(zeros({kLosses + accumulation}, DType::f64, stream_)),
      seen_numbers_(stream_.device.is_cpu() ? numbers_ : empty_pinned(numbers_.shape(), DType::f64)),
      control_(zeros({2}, DType::f32, stream_)),
      numbers_ready_(stream_.device) {
  for (std::int64_t i = 0; i < kAhead; ++i) pace_.emplace_back(stream_.device);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    parameters_[i]->value.on_grad_ready([this, i, p = parameters_[i].get()] {
      comm_.progress().beat();  // one micro-batch can take minutes on a CPU
      reducer_.ready(static_cast<std::int64_t>(i), p->value.grad());
      p->value.zero_grad();  // the reducer has its copy: the next micro-batch starts from nothing
    });
  }
}

GradientStep::~GradientStep() {
  for (const auto& p : parameters_) p->value.on_grad_ready({});
}

void GradientStep::micro_batch(std::int64_t index, Loader& loader, StepSummary& summary,
                               std::vector<SelectionStats>* stats) {
  const Batch batch = loader.next();
  const TokenBatch there{staging_.upload(batch.tokens), staging_.upload(batch.targets),
                         staging_.upload(batch.document_starts)};
  const Variable loss = model_.loss_sum(there, nullptr, stats);
  backward(loss);
  summary.tokens += batch.target_count;
  numbers_.slice(0, kLosses + index, kLosses + index + 1).copy_from(loss.value().reshape({1}));
}

// A heartbeat that a GPU stands behind: without it the host would queue a whole step and then be silent for as long as
// the step takes.
void GradientStep::keep_pace(std::int64_t index) {
  Event& event = pace_[static_cast<std::size_t>(index % kAhead)];
  if (index >= kAhead) event.synchronize();
  event.record(stream_);
  comm_.progress().beat();
}

// Queues what becomes of the gradient: the same decision on every rank, from numbers that the ranks add up.
void GradientStep::decide(double tokens, double clip) {
  double* numbers = numbers_.data<double>();
  launch(stream_, StepTotalsArgs{
                      .losses = numbers + kLosses, .n = accumulation_, .tokens = tokens, .totals = numbers + kTokens});
  numbers_.slice(0, kNorm, kNorm + 1).copy_from(reducer_.squared_norm().reshape({1}));
  Tensor totals = numbers_.slice(0, kTokens, reducer_.sharded() ? kLosses : kNorm);
  comm_.all_reduce(totals, ReduceOp::sum, "step totals");
  launch(stream_, StepControlArgs{.totals = numbers + kTokens,
                                  .squared_norm = numbers + kNorm,
                                  .clip = clip,
                                  .control = control_.data<float>()});
  if (!seen_numbers_.same_storage(numbers_)) seen_numbers_.copy_from(numbers_);
  numbers_ready_.record(stream_);
}

void GradientStep::read_numbers(StepSummary& mine) {
  numbers_ready_.synchronize();
  const double* numbers = seen_numbers_.data<double>();
  TreeSum losses(accumulation_);
  for (std::int64_t i = 0; i < accumulation_; ++i) losses.add(numbers[kLosses + i]);
  mine.loss_sum = losses.result();
  mine.squared_norm = numbers[kNorm];
  mine.flags.nonfinite = !std::isfinite(mine.loss_sum) || !std::isfinite(mine.squared_norm);
}

StepSummary GradientStep::run(Loader& loader, StepFlags flags, std::vector<SelectionStats>* stats, double clip,
                              const Update& update) {
  const Progress::Scope scope(comm_.progress(), "forward and backward");
  StepSummary mine;
  mine.flags = flags;
  std::exception_ptr failure;
  numbers_.zero();
  reducer_.begin_step(accumulation_);
  for (std::int64_t i = 0; i < accumulation_; ++i) {
    // After a failure the micro-batches that are left count as zeros: the other ranks wait for this rank's part of
    // every bucket.
    if (!failure) {
      try {
        micro_batch(i, loader, mine, i == 0 ? stats : nullptr);
      } catch (const Error& e) {
        if (e.code() == Exit::peer) throw;
        failure = std::current_exception();
        for (const auto& p : parameters_) p->value.zero_grad();
      }
    }
    reducer_.end_micro_batch();
    keep_pace(i);
  }
  reducer_.finish();
  decide(static_cast<double>(mine.tokens), clip);
  if (update) update(reducer_.flat(), control_);
  read_numbers(mine);
  mine.flags.error = failure != nullptr;
  const StepSummary all = reduce_step_summary(comm_, mine);
  if (all.flags.error) {
    on_every_rank(comm_, "failure of a rank", [&] {
      if (failure) std::rethrow_exception(failure);
    });
  }
  return all;
}

std::vector<Tensor> GradientStep::gradients() const {
  std::vector<Tensor> out;
  for (std::int64_t i = 0; i < reducer_.parameters(); ++i) out.push_back(reducer_.gradient(i));
  return out;
}

}  // namespace sieve
