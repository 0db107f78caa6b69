// Full and sliding-window attention by cuDNN on one GPU, forward and backward, deterministic or not, as Markdown:
//   bench_gpu_attention [--heads H] [--kv-heads H] [--batch B] [--head-dim D] [--longest T] [--window W] [--rotary]
// bf16 random data. Milliseconds are medians between events on the stream; TF/s counts the multiplications and
// additions of visible pairs alone: 4 D a pair and head forward (two products), 10 D backward (five). A dash: cuDNN has
// no kernel, or wants more working memory than --workspace-gib (the deterministic backward's grows with T^2).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "attention/kernels/dense.h"
#include "attention/rotary.h"
#include "core/version.h"
#include "tensor/runtime.h"
#include "tensor/tensor.h"

using namespace sieve;

namespace {

struct Options {
  std::int64_t B = 4, H = 16, Hkv = 16, window = 512, longest = 65536;
  std::vector<std::int64_t> D = {64, 128};
  double seconds = 0.3, workspace_gib = 16;
  bool rotary = false;
};

Options parse(int argc, char** argv) {
  Options o;
  bool grouped = false;
  for (int i = 1; i < argc; ++i) {
    const std::string key = argv[i];
    const auto value = [&] {
      require(i + 1 < argc, "bench", key, " wants a value");
      return std::string(argv[++i]);
    };
    if (key == "--heads") o.H = std::atoll(value().c_str());
    else if (key == "--kv-heads") o.Hkv = std::atoll(value().c_str()), grouped = true;
    else if (key == "--batch") o.B = std::atoll(value().c_str());
    else if (key == "--head-dim") o.D = {std::atoll(value().c_str())};
    else if (key == "--longest") o.longest = std::atoll(value().c_str());
    else if (key == "--window") o.window = std::atoll(value().c_str());
    else if (key == "--seconds") o.seconds = std::atof(value().c_str());
    else if (key == "--workspace-gib") o.workspace_gib = std::atof(value().c_str());
    else if (key == "--rotary") o.rotary = true;
    else fail(Exit::config, "bench", "unknown option ", key);
  }
  if (!grouped) o.Hkv = o.H;
  return o;
}

// Median seconds of f, between events; two warm-ups, then at least 5 and at most 100 runs.
double median_seconds(const std::function<void()>& f, const Stream& stream, double budget) {
  f();
  f();
  synchronize(stream);
  std::vector<double> times;
  double spent = 0;
  while (times.size() < 5 || (spent < budget && times.size() < 100)) {
    Event begin(stream.device), end(stream.device);
    begin.record(stream);
    f();
    end.record(stream);
    end.synchronize();
    times.push_back(end.seconds_since(begin));
    spent += times.back();
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

double visible_pairs(std::int64_t T, std::int64_t window) {
  const double t = static_cast<double>(T), w = static_cast<double>(window > 0 ? std::min(window, T) : T);
  return w * t - w * (w - 1) / 2;
}

// One measured pass as two cells: milliseconds and TF/s.
template <class Args>
std::string cells(const Args& args, const Stream& stream, double flops, const Options& o) {
  if constexpr (build::with_cudnn) {
    try {
      const double gib = static_cast<double>(cuda::workspace_bytes(args, stream)) / (1 << 30);
      if (gib > o.workspace_gib) return cat(" – | – (", static_cast<int>(std::ceil(gib)), " GiB) |");
      const double seconds = median_seconds([&] { cuda::run(args, stream); }, stream, o.seconds);
      char text[64];
      std::snprintf(text, sizeof text, " %.3f | %.0f |", seconds * 1e3, flops / seconds * 1e-12);
      return text;
    } catch (const DenseUnsupported& e) { std::fprintf(stderr, "%s\n", e.what()); }
  }
  return " – | – |";
}

void measure(std::int64_t T, std::int64_t D, std::int64_t window, const Options& o, const Stream& stream) {
  const std::int64_t F = (o.H + 2 * o.Hkv) * D;
  const auto random = [&](std::int64_t features, std::uint64_t seed) {
    return random_normal({o.B, std::min<std::int64_t>(T, 1024), features}, 0, 1, seed, 1, DType::bf16);
  };
  // The host draws at most 1,024 positions a row; longer rows repeat them, which changes neither the work nor its cost.
  const auto fill = [&](Tensor& t, const Tensor& piece) {
    for (std::int64_t at = 0; at < T; at += piece.size(1)) {
      const std::int64_t n = std::min(piece.size(1), T - at);
      Tensor part = t.slice(1, at, at + n);
      part.copy_from(piece.slice(1, 0, n));
    }
  };
  Tensor qkv = empty({o.B, T, F}, DType::bf16, stream), dqkv = empty_like(qkv);
  Tensor out = empty({o.B, T, o.H * D}, DType::bf16, stream), dout = empty_like(out);
  const Tensor statistics = empty({o.B, o.H, T}, DType::f32, stream);
  fill(qkv, random(F, 1).to(stream));
  fill(dout, random(o.H * D, 2).to(stream));
  DenseAttentionBackwardArgs args;
  DenseAttentionArgs& f = args.forward;
  const RotaryTable rotary = rotary_table({.rotary_dims = o.rotary ? D : 0}, T, DType::f32, stream);
  if (o.rotary) f.rotary = {rotary.cos.raw(), rotary.sin.raw(), D, -1};
  f.qkv_BTF = qkv.raw();
  f.out_BTHD = out.raw();
  f.statistics_BHT = statistics.data<float>();
  f.B = o.B;
  f.T = T;
  f.H = o.H;
  f.Hkv = o.Hkv;
  f.D = D;
  f.window = window < T ? window : 0;
  f.scale = 1 / std::sqrt(static_cast<double>(D));
  args.dout_BTHD = dout.raw();
  args.dqkv_BTF = dqkv.raw();
  const double product = 2.0 * visible_pairs(T, window) * static_cast<double>(o.B * o.H * D);
  std::string row =
      cat("| ", D, " | ", window > 0 ? cat(window) : "full", " | ", T, " |", cells(f, stream, 2 * product, o));
  row += cells(args, stream, 5 * product, o);
  args.deterministic = true;
  row += cells(args, stream, 5 * product, o);
  std::puts(row.c_str());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  const Options o = parse(argc, argv);
  require(cuda_device_count() > 0, "bench", "no CUDA device");
  const Stream stream = main_stream({Device::Kind::cuda, 0});
  const DeviceInfo info = device_info(stream.device);
  std::printf("%s, %s, B=%lld H=%lld/%lld, bf16%s, causal; ms (median) and TF/s over visible pairs\n\n",
              info.name.c_str(), info.driver.c_str(), static_cast<long long>(o.B), static_cast<long long>(o.H),
              static_cast<long long>(o.Hkv), o.rotary ? ", rotary" : "");
  std::printf("| D | window | T | forward ms | TF/s | backward ms | TF/s | deterministic backward ms | TF/s |\n");
  std::printf("|---|---|---|---|---|---|---|---|---|\n");
  for (const std::int64_t D : o.D) {
    for (const std::int64_t window : {std::int64_t{0}, o.window}) {
      for (std::int64_t T = 1024; T <= o.longest; T *= 4) measure(T, D, window, o, stream);
    }
  }
  return 0;
} catch (const Error& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return static_cast<int>(e.code());
}
