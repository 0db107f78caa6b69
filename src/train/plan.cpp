#include "train/plan.h"

#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "core/build.h"
#include "data/tokenizer.h"
#include "dist/reducer.h"
#include "train/commands.h"
#include "train/compute.h"
#include "train/format.h"
#include "train/idle_keys.h"
#include "train/peak.h"
#include "train/run_data.h"

namespace sieve {
namespace {

MemoryPlan memory_of(const RunConfig& config, const ModelCost& cost, const RunScale& scale, int world_size) {
  const bool low = config.device.precision == Precision::bf16;
  const double n = static_cast<double>(cost.parameters);
  MemoryPlan m;
  m.weights = n * (low ? 6 : 4);
  m.optimizer = n * 8 / (config.parallel.zero > 0 ? world_size : 1);
  m.gradients = n * 4 * GradientReducer::buffers(scale.accumulation, config.run.deterministic.value_or(true));
  m.activations = cost.activation_bytes_per_token * static_cast<double>(config.train.micro_batch * config.data.seq_len);
  m.loss = cost.loss_bytes;
  if (config.checkpoint.async) m.snapshot = n * 12;
  m.on_gpu = config.device.type == DeviceType::cuda;
  return m;
}

std::string row(const std::string& name, const std::string& value) {
  return name + std::string(22 - name.size(), ' ') + value + "\n";
}

// Rows a query of a head visits on average, and what a layer's cache holds at the end of a context.
std::string kind_text(const KindCost& kind) {
  std::string text = cat(kind.name, " (", kAttentionKindNames[static_cast<std::size_t>(kind.type)], ", ",
                         kind.layers.size(), kind.layers.size() == 1 ? " layer" : " layers", "): a query visits ",
                         format_fixed(kind.visited_rows, 1), " rows");
  if (kind.scored_pairs > 0) text += " and scores " + format_fixed(kind.scored_pairs, 1) + " pairs";
  return text + "; " + format_grouped(kind.cached_rows) + " rows cached, " + format_bytes(kind.cache_bytes) +
         " a sequence and layer";
}

Json kinds_json(const std::vector<KindCost>& kinds) {
  Json list = Json::array();
  for (const KindCost& kind : kinds)
    list.push_back({{"name", kind.name},
                    {"type", kAttentionKindNames[static_cast<std::size_t>(kind.type)]},
                    {"layers", kind.layers},
                    {"visited_rows", kind.visited_rows},
                    {"scored_pairs", kind.scored_pairs},
                    {"cached_rows", kind.cached_rows},
                    {"cache_bytes", kind.cache_bytes},
                    {"parameters", kind.parameters}});
  return list;
}

}  // namespace

RunPlan make_plan(const RunConfig& config, const RunScale& scale, int world_size, double peak_tflops) {
  const DType compute = config.device.precision == Precision::bf16 ? DType::bf16 : DType::f32;
  RunPlan plan;
  const Device device{config.device.type == DeviceType::cuda ? Device::Kind::cuda : Device::Kind::cpu, 0};
  plan.cost =
      model_cost(config.model, config.train.micro_batch, config.data.seq_len, compute, config.train.recompute, device);
  plan.kinds = kind_costs(config.model, config.data.seq_len, compute);
  plan.memory = memory_of(config, plan.cost, scale, world_size);
  const ModelCost keeps_all =
      model_cost(config.model, config.train.micro_batch, config.data.seq_len, compute, {}, device);
  plan.memory.recomputed = (keeps_all.activation_bytes_per_token - plan.cost.activation_bytes_per_token) *
                           static_cast<double>(config.train.micro_batch * config.data.seq_len);
  plan.scale = scale;
  plan.tokens = checked_product(scale.steps, scale.tokens_per_step, "plan");
  plan.world_size = world_size;
  plan.peak_tflops = peak_tflops;
  plan.seconds = plan.cost.flops_per_token * static_cast<double>(plan.tokens) /
                 (peak_tflops * 1e12 * world_size * kAssumedUtilisation);
  return plan;
}

std::string plan_line(const RunPlan& p) {
  const auto parameters = static_cast<double>(p.cost.parameters - p.cost.sparsek_parameters);
  std::string line = "plan   " + format_count(parameters) + " params";
  if (p.cost.sparsek_parameters > 0)
    line += " (+" + format_count(static_cast<double>(p.cost.sparsek_parameters)) + " SparseK)";
  return line + " · " + format_si(p.cost.flops_per_token, "FLOP") +
         "/token (full attention: " + format_si(p.cost.flops_per_token_full, "FLOP") + ") · " +
         format_bytes(p.memory.total()) + "/rank · " + format_grouped(p.scale.steps) + " steps · ~" +
         format_seconds(p.seconds);
}

std::string plan_text(const RunPlan& p) {
  const auto bytes = [](double b) { return format_bytes(b); };
  std::string text;
  text += row("parameters", format_grouped(p.cost.parameters) + " (" + format_grouped(p.cost.sparsek_parameters) +
                                " in SparseK scorers)");
  text += row("FLOPs per token", format_si(p.cost.flops_per_token, "FLOP") + ", forward and backward");
  text += row("  all layers full", format_si(p.cost.flops_per_token_full, "FLOP"));
  for (const KindCost& kind : p.kinds) text += row(&kind == p.kinds.data() ? "attention" : "", kind_text(kind));
  text += row("tokens", format_grouped(p.tokens));
  text += row("steps", format_grouped(p.scale.steps) + " of " + format_grouped(p.scale.tokens_per_step) + " tokens (" +
                           format_grouped(p.scale.samples_per_step) + " sequences)");
  text += row("micro-batches", format_grouped(p.scale.micro_batches) + " a step, " +
                                   format_grouped(p.scale.accumulation) + " per rank on " +
                                   std::to_string(p.world_size) + (p.world_size == 1 ? " rank" : " ranks"));
  text += row("memory per rank", bytes(p.memory.total()));
  text += row("  weights", bytes(p.memory.weights));
  text += row("  optimizer", bytes(p.memory.optimizer));
  text += row("  gradients", bytes(p.memory.gradients));
  text += row("  activations", bytes(p.memory.activations));
  if (p.memory.recomputed > 0) text += row("  recompute saves", bytes(p.memory.recomputed) + " (not in the sum)");
  text += row("  loss", bytes(p.memory.loss));
  text += row("  checkpoint copy",
              bytes(p.memory.snapshot) + (p.memory.on_gpu ? " of host memory (rank 0, not in the sum)" : " (rank 0)"));
  text += row("time", "~" + format_seconds(p.seconds) + " at " + format_fixed(100 * kAssumedUtilisation, 0) + " % of " +
                          format_fixed(p.peak_tflops * 1000, 0) + " GFLOP/s a rank");
  return text;
}

Json plan_json(const RunPlan& p) {
  return Json{{"parameters", p.cost.parameters},
              {"sparsek_parameters", p.cost.sparsek_parameters},
              {"flops_per_token", p.cost.flops_per_token},
              {"flops_per_token_full", p.cost.flops_per_token_full},
              {"attention", kinds_json(p.kinds)},
              {"tokens", p.tokens},
              {"steps", p.scale.steps},
              {"tokens_per_step", p.scale.tokens_per_step},
              {"samples_per_step", p.scale.samples_per_step},
              {"micro_batches", p.scale.micro_batches},
              {"accumulation", p.scale.accumulation},
              {"world_size", p.world_size},
              {"memory_bytes",
               {{"total", p.memory.total()},
                {"weights", p.memory.weights},
                {"optimizer", p.memory.optimizer},
                {"gradients", p.memory.gradients},
                {"activations", p.memory.activations},
                {"recomputed", p.memory.recomputed},
                {"loss", p.memory.loss},
                {"snapshot", p.memory.snapshot}}},
              {"peak_tflops", p.peak_tflops},
              {"seconds", p.seconds}};
}

double physical_memory(const RunConfig& config) {
  if (config.device.type == DeviceType::cuda && cuda_device_count() > 0)
    return static_cast<double>(device_info({Device::Kind::cuda, 0}).memory_bytes);
  return static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGE_SIZE));
}

std::vector<std::string> memory_help(const RunConfig& config, const RunPlan& plan) {
  const MemoryPlan& m = plan.memory;
  std::vector<std::pair<double, std::string>> ways;  // what is left, how
  const auto offer = [&](const std::string& how, const RunConfig& changed, const RunScale& scale) {
    const double left = make_plan(changed, scale, plan.world_size, plan.peak_tflops).memory.total();
    if (left < 0.99 * m.total()) ways.emplace_back(left, how);
  };
  if (config.train.micro_batch % 2 == 0) {
    RunConfig half = config;
    half.train.micro_batch /= 2;
    RunScale scale = plan.scale;
    scale.micro_batches *= 2, scale.accumulation *= 2;
    offer(cat("train.micro_batch=", half.train.micro_batch), half, scale);
  }
  RunConfig gelu = config;
  gelu.train.recompute.activations = config.model.n_layers;
  offer(cat("train.recompute.activations=", config.model.n_layers, " (1 to 4 % slower)"), gelu, plan.scale);
  RunConfig shared = config;
  shared.parallel.zero = 1;
  offer("parallel.zero=1", shared, plan.scale);
  RunConfig recompute = config;
  recompute.train.recompute.attention = recompute.train.recompute.mlp = true;
  offer("train.recompute={attention: true, mlp: true} (slower)", recompute, plan.scale);
  RunConfig low = config;
  low.device.precision = Precision::bf16;
  offer("device.precision=bf16", low, plan.scale);
  RunConfig plain = config;
  plain.run.deterministic = false;
  offer("run.deterministic=false (other bits on other ranks)", plain, plan.scale);
  RunConfig waiting = config;
  waiting.checkpoint.async = false;
  offer("checkpoint.async=false (training waits for saves)", waiting, plan.scale);
  std::sort(ways.begin(), ways.end());

  std::vector<std::string> lines{cat("plan   ", format_bytes(m.total()), "/rank: weights ", format_bytes(m.weights),
                                     ", optimizer ", format_bytes(m.optimizer), ", gradients ",
                                     format_bytes(m.gradients), ", activations ", format_bytes(m.activations),
                                     ", loss ", format_bytes(m.loss), ", checkpoint copy ", format_bytes(m.snapshot),
                                     " (rank 0); there are ", format_bytes(physical_memory(config)))};
  for (const auto& [left, how] : ways) lines.push_back(cat("shrink ", how, ": ", format_bytes(left), "/rank"));
  lines.push_back(
      "shrink a shorter data.seq_len, fewer or narrower layers (model.n_layers, model.d_model, model.d_ff)");
  return lines;
}

namespace {

// Dense bf16 through tensor cores and fp32 outside of them, from the data sheets.
struct GpuPeak {
  std::string_view name;
  double bf16, fp32;
};
constexpr GpuPeak kGpuPeaks[] = {{"a100", 312, 19.5}, {"h100", 989, 67}, {"h200", 989, 67}, {"b200", 2250, 75}};

double gpu_peak_tflops(const std::string& name, Precision precision) {
  for (const GpuPeak& gpu : kGpuPeaks) {
    if (gpu.name == name) return precision == Precision::bf16 ? gpu.bf16 : gpu.fp32;
  }
  fail(Exit::config, "--gpu", "unknown GPU \"", name, "\" (a100, h100, h200, b200); or give --peak-tflops");
}

// A run for GPUs is planned on any machine, but only a GPU says how fast it is.
double measured_peak(const RunConfig& config) {
  if (config.device.type == DeviceType::cuda && cuda_device_count() == 0)
    fail(Exit::config, "plan",
         "there is no GPU here whose rate could be measured; give --gpu h100 (a100, h200, b200) "
         "or --peak-tflops");
  return measure_peak_tflops(compute_dtype(config), compute_stream(config.device.type, 0));
}

// A plan wants no tokenizer, only its size.
std::int64_t planned_vocabulary(const RunConfig& config, const ConfigTree& tree) {
  try {
    return open_run_tokenizer(config, tree)->vocab_size();
  } catch (const Error& e) {
    throw Error(e.code(), cat(e.what(), "\nTo plan without it, give its size: model.vocab_size=8192"));
  }
}

}  // namespace

Exit plan(const PlanOptions& options) {
  LoadedConfig loaded = load_run_config(options.config, options.overrides, options.world_size);
  RunConfig& config = loaded.config;
  warn_of_idle_keys(config, loaded.tree);
  if (options.gpu) config.device.type = DeviceType::cuda;
  // The shards are needed only for a length in epochs, the tokenizer only for an open vocabulary.
  std::int64_t samples = 0, vocab = config.model.vocab_size.value_or(0);
  if (config.train.epochs) {
    const RunData data = open_run_data(config, loaded.tree);
    samples = data.train->sampler().epoch_samples();
    vocab = data.tokenizer->vocab_size();
  } else if (vocab == 0) {
    vocab = planned_vocabulary(config, loaded.tree);
  }
  resolve_config(config, vocab, options.world_size);
  double peak = options.peak_tflops.value_or(config.log.peak_tflops.value_or(0));
  if (peak == 0) peak = options.gpu ? gpu_peak_tflops(*options.gpu, config.device.precision) : measured_peak(config);
  const RunPlan p = make_plan(config, scale_of(config, options.world_size, samples), options.world_size, peak);
  if (options.json) {
    std::cout << json_text(plan_json(p)) << '\n';
  } else {
    std::cout << plan_text(p);
  }
  return Exit::ok;
}

}  // namespace sieve
