#include "train/reporter.h"

#include <numbers>

#include "core/log.h"
#include "train/format.h"

namespace sieve {
namespace {

constexpr double kStatusInterval = 5;  // seconds between heartbeats in status.json
constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

std::vector<std::pair<std::string, double>> layer_values(std::int64_t layer, const SelectionStats& s) {
  const std::string prefix = "attn/" + std::to_string(layer) + "/";
  return {{prefix + "band_over_k", s.band_over_k},
          {prefix + "saturated_over_k", s.saturated_over_k},
          {prefix + "ever_selected", s.ever_selected},
          {prefix + "mean_lifetime", s.mean_lifetime},
          {prefix + "score_std", s.score_std}};
}

std::vector<std::string> columns_of(const RunConfig& config) {
  std::vector<std::string> columns{
      "tokens", "time", "loss/train",     "loss/val",     "bpb/val",        "lr",           "grad_norm", "tok_s",
      "tflops", "mfu",  "mfu_full_equiv", "mem/peak_gib", "data_wait_frac", "skipped_steps"};
  if (!config.log.per_layer) return columns;
  for (std::int64_t layer = 0; layer < config.model.n_layers; ++layer) {
    if (config.model.score_heads(layer) == 0) continue;
    for (const auto& value : layer_values(layer, {})) columns.push_back(value.first);
  }
  return columns;
}

double peak_memory(Device device) { return static_cast<double>(memory_stats(device).peak_bytes); }

}  // namespace

Reporter::Reporter(const RunConfig& config, const RunFolder& folder, const ReporterSetup& setup,
                   const TrainState& state)
    : config_(config),
      setup_(setup),
      console_(setup.speaks && setup.progress && config.has_sink("console") && stderr_is_terminal()),
      status_(folder.status_file(), kStatusInterval) {
  if (!setup_.speaks) return;
  const MetricSinks sinks{config_.has_sink("jsonl"), config_.has_sink("csv"), config_.has_sink("tensorboard")};
  metrics_ = std::make_unique<MetricsWriter>(folder.root().string(), sinks, columns_of(config_),
                                             state.step == 0 ? -1 : state.step);
}

bool Reporter::row_due(std::int64_t step) const { return step % config_.log.every == 0 || step == setup_.total_steps; }

void Reporter::step(const StepReport& report, const Loader::Stats& loader, const TrainState& state) {
  if (!setup_.speaks) return;
  last_ = report;
  stepped_ = true;
  tokens_since_row_ += report.tokens;
  seconds_since_row_ += report.seconds;
  wait_ = loader.wait_seconds;
  seconds_per_step_ = seconds_per_step_ == 0 ? report.seconds : 0.9 * seconds_per_step_ + 0.1 * report.seconds;
  if (console_.redraws()) console_.show(console_row(state));
}

void Reporter::row(const TrainState& state) {
  if (!setup_.speaks) return;
  if (const auto bits = val_bits_per_byte(state))
    note(cat("step ", state.step, " validation loss ", format_fixed(*state.val_loss, 4), " · bits/byte ",
             format_fixed(*bits, 4)));
  const bool due = stepped_ && row_due(state.step);
  if (!due && !state.val_loss) return;
  metrics_->write(metric_row(state, due));
  if (!due) { return; }
  if (config_.has_sink("console")) {
    console_.record(console_row(state));
    const std::vector<SelectionStats> layers = selecting_layers();
    if (!layers.empty()) console_.record(selection_line(layers));
  }
  tokens_since_row_ = 0;
  seconds_since_row_ = 0;
  wait_at_row_ = wait_;
  stepped_ = false;
}

void Reporter::note(const std::string& line) {
  if (!setup_.speaks) return;
  console_.clear();
  log_info(line);
}

void Reporter::warn(const std::string& line) {
  if (!setup_.speaks) return;
  console_.clear();
  log_warn(line);
}

void Reporter::status(const TrainState& state) {
  if (setup_.speaks) status_.beat({"running", state.step, setup_.total_steps, state.tokens, state.loss, -1, ""});
}

void Reporter::finished(const std::string& name, const TrainState& state, Exit code, const std::string& message) {
  if (!setup_.speaks) return;
  console_.clear();
  status_.write({name, state.step, setup_.total_steps, state.tokens, state.loss, static_cast<int>(code), message});
}

Reporter::Rates Reporter::rates(std::int64_t step) const {
  Rates r;
  if (seconds_since_row_ > 0) {
    r.tokens_per_second = static_cast<double>(tokens_since_row_) / seconds_since_row_;
    r.data_wait = (wait_ - wait_at_row_) / seconds_since_row_;
  }
  const double peak = setup_.peak_tflops * setup_.world_size;
  r.tflops = r.tokens_per_second * setup_.cost.flops_per_token / 1e12;
  r.mfu = r.tflops / peak;
  r.mfu_full = r.tokens_per_second * setup_.cost.flops_per_token_full / 1e12 / peak;
  r.eta = static_cast<double>(setup_.total_steps - step) * seconds_per_step_;
  return r;
}

MetricRow Reporter::metric_row(const TrainState& state, bool with_step) const {
  MetricRow row{state.step, {}};
  row.add("tokens", static_cast<double>(state.tokens));
  row.add("time", state.seconds);
  if (with_step) {
    const Rates r = rates(state.step);
    row.add("loss/train", last_.loss);
    row.add("lr", last_.lr);
    row.add("grad_norm", last_.grad_norm);
    row.add("tok_s", r.tokens_per_second);
    row.add("tflops", r.tflops);
    row.add("mfu", r.mfu);
    row.add("mfu_full_equiv", r.mfu_full);
    row.add("mem/peak_gib", peak_memory(setup_.device) / kGiB);
    row.add("data_wait_frac", r.data_wait);
  }
  if (state.val_loss) row.add("loss/val", *state.val_loss);
  if (const auto bits = val_bits_per_byte(state)) row.add("bpb/val", *bits);
  row.add("skipped_steps", static_cast<double>(state.skipped));
  for (std::size_t layer = 0; with_step && layer < last_.stats.size(); ++layer) {
    if (config_.model.score_heads(static_cast<std::int64_t>(layer)) == 0) continue;
    for (auto& [key, value] : layer_values(static_cast<std::int64_t>(layer), last_.stats[layer])) row.add(key, value);
  }
  return row;
}

std::vector<SelectionStats> Reporter::selecting_layers() const {
  std::vector<SelectionStats> layers;
  for (std::size_t layer = 0; layer < last_.stats.size(); ++layer) {
    if (config_.model.score_heads(static_cast<std::int64_t>(layer)) > 0) layers.push_back(last_.stats[layer]);
  }
  return layers;
}

std::optional<double> Reporter::val_bits_per_byte(const TrainState& state) const {
  if (!state.val_loss || setup_.val_bytes_per_target <= 0) return std::nullopt;
  return *state.val_loss / (std::numbers::ln2 * setup_.val_bytes_per_target);
}

std::string Reporter::console_row(const TrainState& state) const {
  const Rates r = rates(state.step);
  const auto mfu = r.mfu <= 1 ? std::optional(r.mfu) : std::nullopt;  // above, the peak was timed while others worked
  return progress_line({.step = state.step,
                        .total_steps = setup_.total_steps,
                        .loss = last_.loss,
                        .val = state.val_loss,
                        .lr = last_.lr,
                        .grad_norm = last_.grad_norm,
                        .tokens_per_second = r.tokens_per_second,
                        .mfu = mfu,
                        .memory_bytes = peak_memory(setup_.device),
                        .data_wait = r.data_wait,
                        .eta_seconds = r.eta});
}

}  // namespace sieve
