#include "train/bench_decode.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <memory>

#include "core/rng.h"
#include "io/json.h"
#include "nn/generation.h"
#include "tensor/profile.h"
#include "train/checkpoint.h"
#include "train/compute.h"
#include "train/format.h"
#include "train/load_config.h"

namespace sieve {
namespace {

constexpr std::int64_t kBurst = 64;  // tokens between two looks at the clock

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Subject {
  std::unique_ptr<Decoder> model;
  DeviceType device = DeviceType::automatic;
};

Subject subject_of(const BenchDecodeOptions& o) {
  if (std::filesystem::is_directory(o.config)) {
    LoadedModel loaded = load_model(o.config);
    return {std::move(loaded.model), loaded.config.device.type};
  }
  RunConfig config = load_run_config(o.config, o.overrides, 1).config;
  const std::int64_t wanted = o.context + o.warmup + o.tokens + 1;
  if (config.model.arch == Arch::gpt2)
    config.model.max_seq = std::max(config.model.max_seq.value_or(config.data.seq_len), wanted);
  config.model.resolve(o.vocab_size, config.data.seq_len);
  return {std::make_unique<Decoder>(config.model,
                                    DecoderOptions{.compute = compute_dtype(config), .seed = 1, .recompute = {}}),
          config.device.type};
}

Tensor random_tokens(const Shape& shape, std::int64_t vocab, std::uint64_t seed) {
  Tensor t = empty(shape, DType::i32);
  const Philox random{seed, 1};
  for (std::int64_t i = 0; i < t.numel(); ++i)
    t.data<std::int32_t>()[i] =
        static_cast<std::int32_t>(random.bits64(static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(vocab));
  return t;
}

struct Measured {
  double prefill = 0, total = 0;  // seconds
  std::vector<double> token;      // seconds a token of each burst, rising
  std::int64_t rows = 0, bytes = 0, peak = 0, weights = 0;
  bool captured = false;
  std::vector<KernelProfile::Entry> kernels;
  double median() const { return token[token.size() / 2]; }
};

Measured measure(const BenchDecodeOptions& o, const Decoder& model) {
  const std::int64_t vocab = *model.config().vocab_size;
  Measured m;
  Generation generation(model, o.batch, o.context + o.warmup + o.tokens + 1);
  const double begin = now();
  generation.append(random_tokens({1, o.context}, vocab, 1));
  synchronize(model.stream());
  m.prefill = now() - begin;
  Tensor next = random_tokens({o.batch}, vocab, 2);
  const auto run = [&](std::int64_t n) {
    const Tensor chosen = generation.continue_greedily(next, n, vocab);
    next = chosen.slice(1, n - 1, n).contiguous();
  };
  if (o.warmup > 0) run(o.warmup);
  reset_peak_memory(model.stream().device);
  const double start = now();
  for (std::int64_t done = 0; done < o.tokens; done += kBurst) {
    const std::int64_t n = std::min(kBurst, o.tokens - done);
    const double before = now();
    run(n);
    m.token.push_back((now() - before) / static_cast<double>(n));
  }
  m.total = now() - start;
  m.peak = memory_stats(model.stream().device).peak_bytes;
  std::sort(m.token.begin(), m.token.end());
  m.rows = generation.cache_rows(), m.bytes = generation.cache_bytes(), m.captured = generation.captured();
  for (const ParameterPtr& p : model.parameters()) m.weights += static_cast<std::int64_t>(p->value.value().nbytes());
  KernelProfile::start();
  run(1);
  m.kernels = KernelProfile::stop();
  return m;
}

Json report(const BenchDecodeOptions& o, const Decoder& model, const Measured& m) {
  Json kernels = Json::object();
  for (const auto& k : m.kernels) kernels[k.kernel] = {{"seconds", k.seconds}, {"calls", k.calls}};
  return Json{{"us_per_token", 1e6 * m.median()},
              {"us_per_token_min", 1e6 * m.token.front()},
              {"us_per_token_max", 1e6 * m.token.back()},
              {"us_per_token_mean", 1e6 * m.total / static_cast<double>(o.tokens)},
              {"tokens_per_second", static_cast<double>(o.batch * o.tokens) / m.total},
              {"prefill_seconds", m.prefill},
              {"batch", o.batch},
              {"context", o.context},
              {"tokens", o.tokens},
              {"captured", m.captured},
              {"precision", name_of(model.compute_dtype())},
              {"device", describe_device(model.stream())},
              {"cache_rows", m.rows},
              {"cache_bytes", m.bytes},
              {"weight_bytes", m.weights},
              {"peak_bytes", m.peak},
              {"kernels", kernels}};
}

void print(const BenchDecodeOptions& o, const Decoder& model, const Measured& m) {
  std::cout << "B = " << o.batch << ", context " << o.context << ", " << o.tokens << " tokens, "
            << name_of(model.compute_dtype()) << ", " << describe_device(model.stream())
            << (m.captured ? ", one graph a token" : ", launch by launch") << "\n"
            << format_fixed(1e6 * m.median(), 1) << " us/token (" << format_fixed(1e6 * m.token.front(), 1) << " to "
            << format_fixed(1e6 * m.token.back(), 1) << ")   "
            << format_fixed(static_cast<double>(o.batch * o.tokens) / m.total, 1) << " tokens/s   prefill "
            << format_fixed(m.prefill, 3) << " s   cache " << m.rows << " rows, "
            << format_bytes(static_cast<double>(m.bytes)) << "   weights "
            << format_bytes(static_cast<double>(m.weights)) << "   peak " << format_bytes(static_cast<double>(m.peak))
            << "\n";
  double sum = 0;
  for (const auto& k : m.kernels) sum += k.seconds;
  for (const auto& k : m.kernels)
    if (k.seconds >= 0.005 * sum)
      std::cout << "  " << format_fixed(100 * k.seconds / sum, 1) << " %  " << format_fixed(1e6 * k.seconds, 1)
                << " us  " << k.kernel << "  (" << k.calls << " a token, one after the other)\n";
}

}  // namespace

Exit bench_decode(const BenchDecodeOptions& options) {
  if (options.batch < 1 || options.context < 1 || options.tokens < 1 || options.warmup < 0)
    fail(Exit::config, "bench decode", "batch ", options.batch, ", context ", options.context, " and tokens ",
         options.tokens, " must be at least 1, warmup ", options.warmup, " at least 0");
  const Subject subject = subject_of(options);
  const Stream stream = compute_stream(resolve_device(subject.device), 0);
  place_parameters(subject.model->parameters(), stream);
  const Measured m = measure(options, *subject.model);
  if (options.json) std::cout << report(options, *subject.model, m).dump(2) << '\n';
  else print(options, *subject.model, m);
  return Exit::ok;
}

}  // namespace sieve
