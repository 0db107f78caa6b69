#include "train/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/rng.h"
#include "train/compute.h"
#include "train/peak.h"
#include "train/sample_text.h"
#include "train/validate.h"

namespace sieve {
namespace {

using namespace std::chrono_literals;

constexpr double kSavePatience = 2;  // seconds that a save waits for the one before it

constexpr std::uint64_t kSampleStream =
    0x73616d706c65;  // keeps the samples' random numbers apart from the initial weights'

ReporterSetup reporter_setup(const TrainerSetup& setup, const Stream& stream, Communicator& comm,
                             const std::optional<ValidationSet>& val) {
  ReporterSetup r;
  r.speaks = comm.rank() == 0;
  r.progress = setup.progress;
  r.total_steps = setup.scale.steps;
  if (r.speaks && val) r.val_bytes_per_target = bytes_per_target(*val, *setup.data.tokenizer);
  r.world_size = comm.size();
  r.device = stream.device;
  r.peak_tflops = setup.config.log.peak_tflops ? *setup.config.log.peak_tflops
                                               : measure_peak_tflops(compute_dtype(setup.config), stream);
  r.cost = model_cost(setup.config.model, setup.config.train.micro_batch, setup.config.data.seq_len,
                      compute_dtype(setup.config), setup.config.train.recompute, stream.device);
  return r;
}

std::optional<ValidationSet> open_validation(const RunConfig& config, const RunData& data) {
  if (!data.val) return std::nullopt;
  return ValidationSet(data.val, config.data.seq_len, config.train.micro_batch, config.model.attention.document_mask,
                       config.eval.tokens.value_or(0));
}

}  // namespace

Trainer::Trainer(TrainerSetup setup, Communicator& comm)
    : config_(setup.config),
      config_yaml_(setup.config_yaml),
      comm_(comm),
      data_(setup.data),
      scale_(setup.scale),
      folder_(setup.folder),
      model_(std::move(setup.model)),
      state_(setup.state),
      gradient_(*model_, comm,
                {.bucket_bytes = config_.parallel.bucket,
                 .deterministic = *config_.run.deterministic,
                 .overlap = config_.parallel.overlap,
                 .shard = config_.parallel.zero > 0},
                scale_.accumulation),
      optimizer_(config_.train.optimizer, gradient_.parameters(), config_.parallel.zero > 0 ? &comm : nullptr),
      loader_(data_.train, config_.train.micro_batch,
              MicroBatchRange{.per_step = scale_.micro_batches, .rank = comm.rank(), .world = comm.size()}, state_.step,
              static_cast<int>(config_.data.prefetch)),
      validation_(open_validation(config_, data_)),
      reporter_(config_, folder_, reporter_setup(setup, model_->stream(), comm, validation_), state_),
      start_(std::chrono::steady_clock::now()),
      last_save_(start_),
      seconds_before_(state_.seconds),
      saved_step_(setup.restored != nullptr ? state_.step : -1) {
  if (setup.restored != nullptr) {
    const SafetensorsFile moments(setup.restored->archive().file("optimizer.safetensors"));
    optimizer_.restore(moments, state_.updates);
  }
  if (speaks()) {
    const PruneRules rules{config_.checkpoint.keep_last, config_.checkpoint.keep_every, config_.checkpoint.keep_best};
    writer_ = std::make_unique<CheckpointWriter>(folder_.checkpoints(), rules, config_.checkpoint.async);
  }
}

Exit Trainer::run() {
  if (validation_ && config_.eval.at_start && state_.step == 0) validate();
  while (state_.step < scale_.steps) {
    comm_.progress().set_step(state_.step);
    const Outcome outcome = update();
    if (outcome == Outcome::diverged) return end(outcome);
    if (validation_due()) validate();
    reporter_.row(state_);
    if (sample_due()) sample();
    // A request to stop waits for what belongs to this step: the resumed run would never make up for it.
    if (outcome != Outcome::going_on) return end(outcome);
    if (save_due()) save();
    report_saved();
    reporter_.status(state_);
  }
  return end(Outcome::going_on);
}

Trainer::Outcome Trainer::update() {
  const auto begin = std::chrono::steady_clock::now();
  StepReport report;
  const bool wants_stats = speaks() && config_.log.per_layer && reporter_.row_due(state_.step + 1);
  report.lr = lr();
  const auto apply = [&](const Tensor& gradient, const Tensor& control) {
    optimizer_.step(gradient, report.lr, 1.0, control);
  };
  const StepSummary summary =
      gradient_.run(loader_, requests(), wants_stats ? &report.stats : nullptr, config_.train.grad_clip, apply);

  ++state_.step;
  state_.tokens += summary.tokens;
  state_.val_loss.reset();
  best_ = false;
  // Every target of the global batch weighs the same, wherever and in whatever micro-batch it was.
  const double per_token = 1.0 / static_cast<double>(std::max<std::int64_t>(1, summary.tokens));
  report.loss = summary.loss_sum * per_token;
  report.grad_norm = std::sqrt(summary.squared_norm) * per_token;
  report.tokens = summary.tokens;
  Outcome outcome = Outcome::going_on;
  if (summary.flags.nonfinite) {
    optimizer_.forget_update();
    outcome = skip(summary);
  } else {
    state_.updates = optimizer_.updates();
    state_.consecutive_skipped = 0;
  }
  state_.loss = report.loss;
  state_.lr = report.lr;
  keep_time();
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  reporter_.step(report, loader_.stats(), state_);
  if (outcome != Outcome::going_on) return outcome;
  if (summary.flags.interrupt) return Outcome::interrupted;
  return summary.flags.stop ? Outcome::stopped : Outcome::going_on;
}

// Decided on the reduced flags, so that every rank skips or none.
Trainer::Outcome Trainer::skip(const StepSummary& summary) {
  ++state_.skipped;
  ++state_.consecutive_skipped;
  const auto& guard = config_.train.nonfinite;
  const bool spent = guard.action == NonfiniteAction::stop || state_.consecutive_skipped > guard.max;
  reporter_.warn(cat("step ", state_.step, ": loss or gradient is not finite (first on rank ", summary.flagged_rank,
                     "); ", spent ? "no more may be skipped (train.nonfinite): the run ends" : "update skipped"));
  return spent ? Outcome::diverged : Outcome::going_on;
}

double Trainer::lr() const {
  return learning_rate(config_.train.schedule, config_.train.optimizer.lr, state_.step, scale_.steps);
}

bool Trainer::out_of_time() const {
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  return config_.run.max_time && elapsed.count() >= *config_.run.max_time;
}

StepFlags Trainer::requests() const {
  const StopReason reason = stop_requested();
  StepFlags flags;
  flags.interrupt = reason == StopReason::interrupted;
  flags.stop = reason == StopReason::preempted || out_of_time();
  return flags;
}

std::string Trainer::stop_cause() const {
  const StopReason reason = stop_requested();
  if (reason != StopReason::none) return reason == StopReason::interrupted ? "Ctrl-C" : "a signal";
  return out_of_time() ? "run.max_time" : "a request on another rank";
}

void Trainer::keep_time() {
  state_.seconds = seconds_before_ + std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

bool Trainer::validation_due() const {
  if (!validation_) return false;
  return (config_.eval.every > 0 && state_.step % config_.eval.every == 0) ||
         (config_.eval.at_end && state_.step == scale_.steps);
}

bool Trainer::sample_due() const { return config_.sample.every > 0 && state_.step % config_.sample.every == 0; }

void Trainer::validate() {
  state_.val_loss = validation_loss(*model_, *validation_, comm_);
  if (std::isfinite(*state_.val_loss) &&
      *state_.val_loss < state_.best_val_loss.value_or(std::numeric_limits<double>::infinity())) {
    state_.best_val_loss = state_.val_loss;
    best_ = true;
  }
  if (state_.step == 0) reporter_.row(state_);
}

// Every rank generates the same text, so that no rank waits for another one without a heartbeat; rank 0 keeps it.
void Trainer::sample() {
  const Progress::Scope scope(comm_.progress(), "sampling");
  const auto& s = config_.sample;
  std::string text;
  for (std::size_t i = 0; i < s.prompts.size(); ++i) {
    const TextGeneration generation{.max_new_tokens = s.max_new_tokens,
                                    .sampling = {.temperature = s.temperature, .top_k = s.top_k, .top_p = s.top_p},
                                    .seed = static_cast<std::uint64_t>(config_.run.seed),
                                    .stream = stream_of(kSampleStream, state_.step, i)};
    text += s.prompts[i] +
            generate_text(*model_, *data_.tokenizer, s.prompts[i], generation,
                          [this](std::string_view) {
                            comm_.progress().beat();
                            return true;
                          })
                .text +
            "\n\n---\n\n";
  }
  if (!speaks()) return;
  folder_.write_sample(state_.step, text);
  reporter_.note("sample at step " + std::to_string(state_.step) + ": " + text.substr(0, text.find('\n')));
}

bool Trainer::save_due() const {
  if (state_.step == saved_step_) return false;
  const auto& c = config_.checkpoint;
  const std::chrono::duration<double, std::ratio<60>> minutes = std::chrono::steady_clock::now() - last_save_;
  return agreed(speaks() && (save_postponed_ || (c.every > 0 && state_.step % c.every == 0) ||
                             (c.every_minutes && minutes.count() >= *c.every_minutes) || (best_ && c.keep_best > 0)));
}

// All ranks hold the same state, so only rank 0 saves, and when is its own decision: no collective depends on it. Where
// the moments are shared (parallel.zero) every rank has a part of them: then rank 0 decides for all.
bool Trainer::agreed(bool decision) const {
  return optimizer_.shared() ? comm_.any(decision, "when to save") : decision;
}

// While the previous one is still being written this one is postponed: the other ranks must not wait for a slow disk.
void Trainer::save() {
  if (!(writer_ || optimizer_.shared()) || state_.step == saved_step_) return;
  const Progress::Scope scope(comm_.progress(), "saving a checkpoint");
  const double patience = save_postponed_ ? 0 : std::min(kSavePatience, config_.parallel.timeout / 4);
  if (agreed(writer_ && !writer_->wait_for(patience))) {
    if (!save_postponed_)
      reporter_.warn(
          cat("step ", state_.step, ": the previous checkpoint is still being written; this one is postponed"));
    save_postponed_ = true;
    return;
  }
  const CheckpointContent content = checkpoint_content();
  if (writer_) writer_->save(content);
  save_postponed_ = false;
  saved_step_ = state_.step;
  last_save_ = std::chrono::steady_clock::now();
  best_ = false;
}

// On every rank, with heartbeats, however long the disk takes.
void Trainer::drain_writer() {
  const Progress::Scope scope(comm_.progress(), "saving a checkpoint");
  while (comm_.any(writer_ && writer_->busy(), "saving a checkpoint")) {
    std::this_thread::sleep_for(20ms);
    comm_.progress().beat();
  }
}

void Trainer::report_saved() {
  if (!writer_) return;
  for (const auto& line : writer_->poll()) reporter_.note(line);
}

CheckpointContent Trainer::checkpoint_content() const {
  CheckpointContent content;
  content.state = state_;
  content.config_yaml = config_yaml_;
  content.config_json = model_json(config_.model);
  content.tokenizer = data_.tokenizer;
  collect_weights(*model_, content.model, content.scorers);
  content.optimizer = optimizer_.state();
  return content;
}

Exit Trainer::end(Outcome outcome) {
  if (outcome == Outcome::diverged) {
    reporter_.finished("failed", state_, Exit::nonfinite, "the non-finite budget is spent");
    return Exit::nonfinite;
  }
  drain_writer();
  save();
  drain_writer();
  report_saved();
  comm_.barrier("the last checkpoint");
  const Exit code = outcome == Outcome::going_on  ? Exit::ok
                    : outcome == Outcome::stopped ? Exit::preempted
                                                  : Exit::interrupted;
  if (code != Exit::ok)
    reporter_.note("stopped by " + stop_cause() + " at step " + std::to_string(state_.step) +
                   "; continue with --resume auto");
  reporter_.finished(code == Exit::ok ? "finished" : "preempted", state_, code);
  return code;
}

}  // namespace sieve
