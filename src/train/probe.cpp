#include "train/probe.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <iostream>
#include <memory>
#include <optional>

#include "core/log.h"
#include "core/parallel_for.h"
#include "dist/gpus.h"
#include "dist/watchdog.h"
#include "tensor/runtime.h"
#include "train/adamw.h"
#include "train/compute.h"
#include "train/expression.h"
#include "train/format.h"
#include "train/freeze.h"
#include "train/gradient_step.h"
#include "train/probe_report.h"

namespace sieve {
namespace {

constexpr double kTimeout = 600;  // seconds without progress that end a rank
constexpr int kPrefetch = 4;
constexpr std::int64_t kReports = 10;  // of a training, where probe.eval.every does not say

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

DType compute_dtype_of(const ProbeConfig& c) {
  return c.device.precision == Precision::bf16 ? DType::bf16 : DType::f32;
}

std::unique_ptr<Decoder> build(const LoadedProbe& probe, Communicator& comm) {
  const ProbeConfig& c = probe.config;
  auto model = std::make_unique<Decoder>(
      c.model, DecoderOptions{
                   .compute = compute_dtype_of(c), .seed = static_cast<std::uint64_t>(c.probe.seed), .recompute = {}});
  freeze_matching(*model, c.probe.freeze, probe.tree, "probe.freeze");
  const Stream stream = compute_stream(resolve_device(c.device.type), comm.local_rank());
  connect_gpus(comm, stream.device, kTimeout);
  set_gpu_determinism(true);
  place_parameters(model->parameters(), stream);
  return model;
}

// The rows of one forward, and where they are asked.
struct AskedBatch {
  Tensor tokens;                     // i32 (rows, T)
  std::vector<std::int32_t> places;  // in the flattened tokens
  std::vector<std::int32_t> answers;
  std::vector<std::int64_t> distances;
  std::vector<std::size_t> ends;  // of each row, in `places`
};

AskedBatch make_batch(const ProbeGroup& p, const ProbeSetting& setting, std::int64_t first, std::int64_t rows) {
  AskedBatch batch;
  const std::int64_t T = setting.length;
  batch.tokens = empty({rows, T}, DType::i32);
  for (std::int64_t r = 0; r < rows; ++r) {
    const ProbeRow row =
        probe_row(p.spec(), setting, ProbeUse::evaluation, static_cast<std::uint64_t>(p.seed), first + r);
    std::copy(row.tokens.begin(), row.tokens.end(), batch.tokens.data<std::int32_t>() + r * T);
    for (std::int64_t t = 0; t < T; ++t) {
      const auto at = static_cast<std::size_t>(t);
      if (row.targets[at] < 0) continue;
      batch.places.push_back(static_cast<std::int32_t>(r * T + t));
      batch.answers.push_back(row.targets[at]);
      batch.distances.push_back(t - row.sources[at]);
    }
    batch.ends.push_back(batch.places.size());
  }
  return batch;
}

// Whether the likeliest token, the first of equals, is the answer, for every place.
std::vector<char> answered(const Decoder& model, const AskedBatch& batch) {
  const auto n = static_cast<std::int64_t>(batch.places.size());
  const Tensor logits = model.logits_at(batch.tokens, from_values<std::int32_t>(batch.places, {n})).to(Stream{});
  const std::int64_t V = logits.size(1);
  std::vector<char> right(batch.places.size());
  parallel_for(n, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float* row = logits.data<float>() + i * V;
      right[static_cast<std::size_t>(i)] =
          std::max_element(row, row + V) - row == batch.answers[static_cast<std::size_t>(i)];
    }
  });
  return right;
}

void count(const AskedBatch& batch, const std::vector<char>& right, ProbeResult& result) {
  std::size_t place = 0;
  for (const std::size_t end : batch.ends) {
    bool whole = true;
    for (; place < end; ++place) {
      const auto distance = static_cast<std::uint64_t>(std::max<std::int64_t>(1, batch.distances[place]));
      const auto bucket = static_cast<std::size_t>(std::bit_width(distance) - 1);
      for (ProbeCount* c : {&result.tokens, &result.distances.at(bucket)}) ++c->asked, c->right += right[place];
      whole = whole && right[place];
    }
    ++result.rows.asked, result.rows.right += whole;
  }
}

// Adds up what the ranks counted.
void add_ranks(ProbeResult& result, Communicator& comm) {
  std::vector<ProbeCount*> counts{&result.tokens, &result.rows};
  for (ProbeCount& c : result.distances) counts.push_back(&c);
  Tensor sums = zeros({static_cast<std::int64_t>(counts.size()), 2}, DType::f64);  // whole numbers, exact
  double* at = sums.data<double>();
  for (std::size_t i = 0; i < counts.size(); ++i) {
    at[2 * i] = static_cast<double>(counts[i]->asked);
    at[2 * i + 1] = static_cast<double>(counts[i]->right);
  }
  comm.all_reduce(sums, ReduceOp::sum, "right answers");
  for (std::size_t i = 0; i < counts.size(); ++i) *counts[i] = {std::llround(at[2 * i]), std::llround(at[2 * i + 1])};
}

class Training {
 public:
  Training(const ProbeConfig& config, const Decoder& model, Communicator& comm)
      : probe_(config.probe),
        model_(model),
        comm_(comm),
        gradient_(model, comm, {.deterministic = true}, per_step() / comm.size()),
        optimizer_(optimizer_of(probe_), gradient_.parameters()),
        loader_(std::make_shared<ProbeSet>(probe_.spec(), ProbeSetting{probe_.length, probe_.items, {}},
                                           static_cast<std::uint64_t>(probe_.seed)),
                *probe_.micro_batch, {.per_step = per_step(), .rank = comm.rank(), .world = comm.size()}, 0,
                kPrefetch) {}

  void run(ProbeOutcome& outcome) {
    const std::int64_t every =
        probe_.eval.every > 0 ? probe_.eval.every : std::max<std::int64_t>(1, probe_.steps / kReports);
    for (std::int64_t step = 0; step < probe_.steps; ++step) {
      comm_.progress().set_step(step);
      const double began = now(), loss = update(step);
      outcome.train_seconds += now() - began;
      if ((step + 1) % every == 0) report(step + 1, loss, outcome);
    }
  }

 private:
  std::int64_t per_step() const { return probe_.batch / *probe_.micro_batch; }

  static OptimizerConfig optimizer_of(const ProbeGroup& p) {
    OptimizerConfig config;
    config.lr = p.lr;
    config.weight_decay = p.weight_decay;
    return config;
  }

  double update(std::int64_t step) {
    const double lr = learning_rate(probe_.schedule, probe_.lr, step, probe_.steps);
    const StepSummary summary = gradient_.run(
        loader_, {}, nullptr, probe_.grad_clip,
        [&](const Tensor& gradient, const Tensor& control) { optimizer_.step(gradient, lr, 1.0, control); });
    if (summary.flags.nonfinite)
      fail(Exit::nonfinite, "probe", "update ", step + 1, " of ", probe_.steps, ": loss or gradient is not finite",
           "; lower probe.lr, or raise probe.schedule.warmup");
    return summary.loss_sum / static_cast<double>(std::max<std::int64_t>(1, summary.tokens));
  }

  void report(std::int64_t step, double loss, ProbeOutcome& outcome) {
    ProbePoint point{step, loss, {}};
    if (probe_.eval.every > 0) {
      const double began = now();
      point.accuracy = measure_probe(model_, probe_, {probe_.length, probe_.items, {}}, comm_).tokens.accuracy();
      outcome.eval_seconds += now() - began;
    }
    outcome.curve.push_back(point);
    if (comm_.rank() != 0) return;
    log_info("step ", step, "/", probe_.steps, " loss ", format_fixed(loss, 4),
             point.accuracy ? cat(" accuracy ", format_fixed(100 * *point.accuracy, 1), " %") : "");
  }

  const ProbeGroup& probe_;
  const Decoder& model_;
  Communicator& comm_;
  GradientStep gradient_;
  AdamW optimizer_;
  Loader loader_;
};

// The windows of all layers together hand a token on over `reach` places: where the block is nearer than that, windows
// can pass the test that is made to be out of their reach.
void warn_of_reach(const ProbeConfig& c) {
  if (c.probe.task != ProbeTask::long_copy) return;
  std::int64_t reach = 0;
  for (std::int64_t layer = 0; layer < c.model.n_layers; ++layer)
    reach += std::max<std::int64_t>(0, c.model.kind_of_layer(layer).window - 1);
  const std::int64_t distance = c.probe.length - c.probe.items;
  if (reach >= distance)
    log_warn("probe.length: the windows of all layers together reach ", reach,
             " tokens back, and the block to be copied stands ", distance, " back: it asks for no long memory");
}

}  // namespace

ProbeResult measure_probe(const Decoder& model, const ProbeGroup& p, const ProbeSetting& setting, Communicator& comm) {
  const Progress::Scope scope(comm.progress(), "measuring a probe");
  ProbeResult result{.setting = setting};
  // Longer rows, fewer at once.
  const std::int64_t rows = std::max<std::int64_t>(1, *p.micro_batch * p.length / setting.length);
  for (std::int64_t first = comm.rank() * rows; first < p.eval.examples; first += comm.size() * rows) {
    const AskedBatch batch = make_batch(p, setting, first, std::min(rows, p.eval.examples - first));
    count(batch, answered(model, batch), result);
    comm.progress().beat();
  }
  add_ranks(result, comm);
  return result;
}

ProbeOutcome run_probe(const LoadedProbe& probe, Communicator& comm) {
  const ProbeConfig& c = probe.config;
  const std::unique_ptr<Decoder> model = build(probe, comm);
  ProbeOutcome outcome;
  outcome.device = describe_device(model->stream());
  for (const ParameterPtr& p : model->parameters()) outcome.parameters += p->numel();
  if (comm.rank() == 0) warn_of_reach(c);
  Training(c, *model, comm).run(outcome);
  const double began = now();
  for (const ProbeSetting& setting : c.probe.settings())
    outcome.results.push_back(measure_probe(*model, c.probe, setting, comm));
  outcome.eval_seconds += now() - began;
  return outcome;
}

Exit probe(const ProbeOptions& options, Communicator& comm) {
  const LoadedProbe loaded = load_probe(options.config, options.overrides, comm.size());
  for (const std::string& expression : options.fail_if)  // a mistake in it is found before the work
    evaluate_comparison(expression, [](const std::string& name) { return probe_metric(name, {}); });
  const Watchdog watchdog(comm.progress(), comm.rank(), kTimeout);
  const ProbeOutcome outcome = run_probe(loaded, comm);
  if (comm.rank() == 0) {
    std::cout << (options.json ? probe_json(loaded.config, outcome) : probe_text(loaded.config, outcome)) << std::flush;
  }
  Exit code = Exit::ok;
  for (const std::string& expression : options.fail_if) {
    if (!evaluate_comparison(expression, [&](const std::string& name) { return probe_metric(name, outcome.results); }))
      continue;
    if (comm.rank() == 0) log_error("fail-if: ", expression);
    code = Exit::threshold;
  }
  return code;
}

}  // namespace sieve
