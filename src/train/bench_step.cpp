#include "train/bench_step.h"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <optional>
#include <span>

#include "core/parallel_for.h"
#include "core/rng.h"
#include "dist/gpus.h"
#include "dist/watchdog.h"
#include "io/json.h"
#include "nn/model_cost.h"
#include "tensor/profile.h"
#include "train/adamw.h"
#include "train/compute.h"
#include "train/format.h"
#include "train/gradient_step.h"
#include "train/load_config.h"
#include "train/peak.h"
#include "train/run_config.h"

namespace sieve {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

const double kLaunched = now();  // when the program was loaded: namespaces are initialised before main

class RandomTokens final : public TokenSource {
 public:
  RandomTokens(std::int64_t tokens, std::int64_t vocab) : tokens_(tokens), vocab_(static_cast<std::uint64_t>(vocab)) {}
  std::string name() const override { return "random tokens"; }
  std::int64_t tokens() const override { return tokens_; }
  std::int64_t documents() const override { return 1; }
  void read(std::int64_t begin, std::span<std::int32_t> out) const override {
    for (std::int32_t& id : out)
      id = static_cast<std::int32_t>(random_.bits64(static_cast<std::uint64_t>(begin++)) % vocab_);
  }
  void document_starts(std::int64_t begin, std::int64_t, std::vector<std::int64_t>& out) const override {
    if (begin == 0) out.push_back(0);
  }

 private:
  std::int64_t tokens_;
  std::uint64_t vocab_;
  Philox random_{1, stream_of(7)};
};

// One rank's training machinery, on random tokens: the same objects as in a run, without outputs.
class Bench {
 public:
  Bench(const RunConfig& config, std::int64_t micro_batches, Communicator& comm)
      : config_(config),
        model_(config.model, {.compute = compute_dtype(config), .seed = 1, .recompute = config.train.recompute}),
        gradient_(placed(compute_stream(config.device.type, comm.local_rank()), comm), comm,
                  {.bucket_bytes = config.parallel.bucket,
                   .deterministic = *config.run.deterministic,
                   .overlap = config.parallel.overlap,
                   .shard = config.parallel.zero > 0},
                  micro_batches),
        optimizer_(config.train.optimizer, gradient_.parameters(), config.parallel.zero > 0 ? &comm : nullptr),
        loader_(corpus(config), config.train.micro_batch,
                MicroBatchRange{.per_step = micro_batches * comm.size(), .rank = comm.rank(), .world = comm.size()}, 0,
                static_cast<int>(config.data.prefetch)) {}

  double step() {
    const double begin = now();
    gradient_.run(loader_, {}, nullptr, 1.0, [this](const Tensor& gradient, const Tensor& control) {
      optimizer_.step(gradient, 1e-4, 1.0, control);
    });
    synchronize(model_.stream());
    return now() - begin;
  }
  const Stream& stream() const { return model_.stream(); }

 private:
  Decoder& placed(const Stream& stream, Communicator& comm) {
    connect_gpus(comm, stream.device, config_.parallel.timeout);
    place_parameters(model_.parameters(), stream);
    return model_;
  }
  static std::shared_ptr<const TrainingSet> corpus(const RunConfig& config) {
    const std::int64_t T = config.data.seq_len;
    return std::make_shared<TrainingSet>(
        std::vector<TrainingSet::Source>{
            {std::make_shared<RandomTokens>(1024 * T + 1, *config.model.vocab_size), std::nullopt}},
        T, 1, config.model.attention.document_mask);
  }

  const RunConfig& config_;
  Decoder model_;
  GradientStep gradient_;
  AdamW optimizer_;
  Loader loader_;
};

struct Measured {
  std::vector<double> seconds;  // of each timed step, rising
  double first_step = 0;        // from the program's launch to the end of its first step
  double peak_bytes = 0, peak_tflops = 0;
  std::vector<KernelProfile::Entry> kernels;  // of one more step
  double profiled_seconds = 0;
  double median() const { return seconds[seconds.size() / 2]; }
};

Measured measure(const BenchStepOptions& options, const RunConfig& config, Communicator& comm) {
  Measured m;
  Bench bench(config, options.micro_batches, comm);
  bench.step();
  m.first_step = now() - kLaunched;
  for (std::int64_t i = 1; i < options.warmup; ++i) bench.step();
  reset_peak_memory(bench.stream().device);
  for (std::int64_t i = 0; i < options.steps; ++i) {
    comm.barrier("a timed step");
    m.seconds.push_back(comm.all_reduce(bench.step(), ReduceOp::max, "step time"));
  }
  std::sort(m.seconds.begin(), m.seconds.end());
  m.peak_bytes = static_cast<double>(memory_stats(bench.stream().device).peak_bytes);
  KernelProfile::start();
  bench.step();
  m.kernels = KernelProfile::stop();
  for (const auto& k : m.kernels) m.profiled_seconds += k.seconds;
  m.peak_tflops =
      config.log.peak_tflops ? *config.log.peak_tflops : measure_peak_tflops(compute_dtype(config), bench.stream());
  return m;
}

void print_kernels(const Measured& m) {
  for (const auto& k : m.kernels) {
    if (k.seconds / m.profiled_seconds >= 0.002)
      std::cout << "  " << format_fixed(100 * k.seconds / m.profiled_seconds, 1) << " %  "
                << format_fixed(1e3 * k.seconds, 3) << " ms  " << k.kernel << "  (" << k.calls << " a step)\n";
  }
}

}  // namespace

Exit bench_step(const BenchStepOptions& options, Communicator& comm) {
  RunConfig config = load_run_config(options.config, options.overrides, comm.size()).config;
  const std::int64_t B = config.train.micro_batch, T = config.data.seq_len;
  config.device.type = resolve_device(config.device.type);
  if (!config.run.deterministic) config.run.deterministic = config.device.type == DeviceType::cpu;
  config.model.resolve(options.vocab_size, T);
  const Stream stream = compute_stream(config.device.type, comm.local_rank());
  set_gpu_determinism(*config.run.deterministic);
  std::optional<Watchdog> watchdog;  // a lost rank must not leave the others waiting
  if (comm.size() > 1) watchdog.emplace(comm.progress(), comm.rank(), config.parallel.timeout);
  const Measured m = measure(options, config, comm);
  if (comm.rank() != 0) return Exit::ok;

  const DType compute = compute_dtype(config);
  const ModelCost cost = model_cost(config.model, B, T, compute, config.train.recompute, stream.device);
  const double tokens = static_cast<double>(B * T * options.micro_batches * comm.size());
  const double rate = tokens / m.median(), flops = rate * cost.flops_per_token;
  const double mfu = flops / (m.peak_tflops * 1e12 * comm.size());
  if (options.json) {
    Json kernels = Json::object();
    for (const auto& k : m.kernels) kernels[k.kernel] = {{"seconds", k.seconds}, {"calls", k.calls}};
    std::cout << Json{{"tokens_per_second", rate},
                      {"gflops", flops / 1e9},
                      {"mfu", mfu},
                      {"peak_tflops", m.peak_tflops},
                      {"step_seconds", m.median()},
                      {"step_seconds_min", m.seconds.front()},
                      {"step_seconds_max", m.seconds.back()},
                      {"first_step_seconds", m.first_step},
                      {"device", describe_device(stream)},
                      {"ranks", comm.size()},
                      {"batch", B},
                      {"seq_len", T},
                      {"micro_batches", options.micro_batches},
                      {"precision", name_of(compute)},
                      {"deterministic", *config.run.deterministic},
                      {"parameters", cost.parameters},
                      {"flops_per_token", cost.flops_per_token},
                      {"peak_bytes", m.peak_bytes},
                      {"kernels", kernels}}
                     .dump(2)
              << '\n';
    return Exit::ok;
  }
  std::cout << format_count(static_cast<double>(cost.parameters)) << " parameters, B = " << B << ", T = " << T << ", "
            << options.micro_batches << (options.micro_batches == 1 ? " micro-batch" : " micro-batches") << " a rank, "
            << name_of(compute) << ", " << describe_device(stream)
            << (comm.size() > 1 ? cat(", ", comm.size(), " ranks") : "") << ", median of " << options.steps
            << " steps\n"
            << format_fixed(rate, 1) << " tokens/s   " << format_fixed(flops / 1e9, 1) << " GFLOP/s   mfu "
            << format_fixed(100 * mfu, 1) << " % of " << format_fixed(m.peak_tflops, 1) << " TFLOP/s   step "
            << format_fixed(m.median() * 1e3, 2) << " ms (" << format_fixed(m.seconds.front() * 1e3, 2) << " to "
            << format_fixed(m.seconds.back() * 1e3, 2) << ")   first step after " << format_fixed(m.first_step, 2)
            << " s   peak " << format_bytes(m.peak_bytes) << '\n';
  print_kernels(m);
  return Exit::ok;
}

}  // namespace sieve
