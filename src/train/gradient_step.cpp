#include "train/gradient_step.h"

#include <cmath>

#include "core/error.h"
#include "dist/tree.h"
#include "train/on_root.h"

namespace sieve {
namespace {

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
      reducer_(comm, slots_of(parameters_), options),
      accumulation_(accumulation) {
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

double GradientStep::micro_batch(Loader& loader, StepSummary& summary, std::vector<SelectionStats>* stats) {
  const Batch batch = loader.next();
  const Variable loss = model_.loss_sum({batch.tokens, batch.targets, batch.document_starts}, nullptr, stats);
  backward(loss);
  summary.tokens += batch.target_count;
  return loss.value().item();
}

StepSummary GradientStep::run(Loader& loader, StepFlags flags, std::vector<SelectionStats>* stats) {
  const Progress::Scope scope(comm_.progress(), "forward and backward");
  StepSummary mine;
  mine.flags = flags;
  TreeSum losses(accumulation_);
  std::exception_ptr failure;
  reducer_.begin_step(accumulation_);
  for (std::int64_t i = 0; i < accumulation_; ++i) {
    double loss = 0;
    // After a failure the micro-batches that are left count as zeros: the other ranks wait for this rank's part of
    // every bucket.
    if (!failure) {
      try {
        loss = micro_batch(loader, mine, i == 0 ? stats : nullptr);
      } catch (const Error& e) {
        if (e.code() == Exit::peer) throw;
        failure = std::current_exception();
        for (const auto& p : parameters_) p->value.zero_grad();
      }
    }
    losses.add(loss);
    reducer_.end_micro_batch();
    comm_.progress().beat();
  }
  reducer_.finish();
  mine.loss_sum = losses.result();
  mine.squared_norm = reducer_.squared_norm();
  mine.flags.nonfinite = !std::isfinite(mine.loss_sum) || !std::isfinite(mine.squared_norm);
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
