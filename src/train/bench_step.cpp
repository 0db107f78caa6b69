#include "train/bench_step.h"

#include <algorithm>
#include <chrono>
#include <iostream>

#include "core/parallel_for.h"
#include "core/rng.h"
#include "io/json.h"
#include "nn/decoder.h"
#include "nn/model_cost.h"
#include "tensor/profile.h"
#include "train/adamw.h"
#include "train/format.h"
#include "train/load_config.h"

namespace sieve {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct StepTimes {
  double forward = 0, backward = 0, optimizer = 0;
  double total() const { return forward + backward + optimizer; }
};

TokenBatch random_batch(std::int64_t B, std::int64_t T, std::int64_t vocab) {
  TokenBatch batch{empty({B, T}, DType::i32), empty({B, T}, DType::i32), {}};
  const Philox random{1, stream_of(7)};
  for (std::int64_t i = 0; i < B * T; ++i) {
    batch.tokens.data<std::int32_t>()[i] =
        static_cast<std::int32_t>(random.bits64(static_cast<std::uint64_t>(2 * i)) % static_cast<std::uint64_t>(vocab));
    batch.targets.data<std::int32_t>()[i] = static_cast<std::int32_t>(
        random.bits64(static_cast<std::uint64_t>(2 * i + 1)) % static_cast<std::uint64_t>(vocab));
  }
  return batch;
}

StepTimes one_step(const Decoder& model, AdamW& optimizer, const TokenBatch& batch) {
  StepTimes times;
  double t = now();
  Variable loss = scale(model.loss_sum(batch), 1.0 / static_cast<double>(batch.targets.numel()));
  times.forward = now() - t;
  t = now();
  backward(loss);
  times.backward = now() - t;
  t = now();
  std::vector<Tensor> grads;
  for (const ParameterPtr& p : optimizer.parameters()) grads.push_back(p->value.grad());
  optimizer.step(grads, 1e-4, clip_factor(gradient_norm(grads), 1.0));
  for (const ParameterPtr& p : optimizer.parameters()) p->value.zero_grad();
  times.optimizer = now() - t;
  return times;
}

}  // namespace

Exit bench_step(const BenchStepOptions& options) {
  RunConfig config = load_run_config(options.config, options.overrides, 1).config;
  const std::int64_t B = config.train.micro_batch, T = config.data.seq_len;
  config.model.resolve(options.vocab_size, T);
  const DType compute = config.device.precision == Precision::bf16 ? DType::bf16 : DType::f32;
  const Decoder model(config.model, {.compute = compute, .seed = 1, .recompute = config.train.recompute});
  AdamW optimizer(config.train.optimizer, model.parameters());
  const TokenBatch batch = random_batch(B, T, *config.model.vocab_size);
  for (std::int64_t i = 0; i < options.warmup; ++i) one_step(model, optimizer, batch);

  reset_peak_memory({});
  KernelProfile::start();
  std::vector<StepTimes> times;
  for (std::int64_t i = 0; i < options.steps; ++i) times.push_back(one_step(model, optimizer, batch));
  const std::vector<KernelProfile::Entry> kernels = KernelProfile::stop();
  std::sort(times.begin(), times.end(), [](const StepTimes& a, const StepTimes& b) { return a.total() < b.total(); });
  const StepTimes median = times[times.size() / 2];

  const ModelCost cost = model_cost(config.model, B, T, compute, config.train.recompute);
  const double rate = static_cast<double>(B * T) / median.total(), gflops = rate * cost.flops_per_token / 1e9;
  const double peak = static_cast<double>(memory_stats({}).peak_bytes);
  double all = 0;
  for (const StepTimes& t : times) all += t.total();
  if (options.json) {
    Json shares = Json::object();
    for (const auto& k : kernels) shares[k.kernel] = k.seconds / all;
    std::cout << Json{{"tokens_per_second", rate},
                      {"gflops", gflops},
                      {"step_seconds", median.total()},
                      {"batch", B},
                      {"seq_len", T},
                      {"precision", name_of(compute)},
                      {"threads", num_threads()},
                      {"parameters", cost.parameters},
                      {"flops_per_token", cost.flops_per_token},
                      {"forward_seconds", median.forward},
                      {"backward_seconds", median.backward},
                      {"optimizer_seconds", median.optimizer},
                      {"peak_bytes", peak},
                      {"kernel_shares", shares}}
                     .dump(2)
              << '\n';
    return Exit::ok;
  }
  std::cout << format_count(static_cast<double>(cost.parameters)) << " parameters, B = " << B << ", T = " << T << ", "
            << name_of(compute) << ", " << num_threads() << " threads, median of " << options.steps << " steps\n"
            << format_fixed(rate, 1) << " tokens/s   " << format_fixed(gflops, 1) << " GFLOP/s   step "
            << format_fixed(median.total(), 3) << " s (forward " << format_fixed(median.forward, 3) << ", backward "
            << format_fixed(median.backward, 3) << ", optimizer " << format_fixed(median.optimizer, 3) << ")   peak "
            << format_bytes(peak) << '\n';
  for (const auto& k : kernels) {
    if (k.seconds / all >= 0.002)
      std::cout << "  " << format_fixed(100 * k.seconds / all, 1) << " %  " << k.kernel << "  ("
                << k.calls / options.steps << " a step)\n";
  }
  return Exit::ok;
}

}  // namespace sieve
