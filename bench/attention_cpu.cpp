// Forward + backward time per token of full, sliding-window and SparseK + window attention on the CPU, T = 1k .. 32k.
//   bench_attention_cpu [--threads N] [--dtype f32|bf16] [--heads H] [--head-dim D] [--longest T] [--full-seconds S]
//   [--cpu-time] [--csv]
// Every number is the best of a few runs. --cpu-time counts processor time divided by threads instead of wall time, for
// machines that others use at the same time. Scores are independent normals, the worst case but one for the length of
// the row lists.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string>
#include <vector>

#include "attention/attention.h"
#include "core/parallel_for.h"
#include "core/version.h"

using namespace sieve;

namespace {

struct Options {
  int threads = 2;
  DType dtype = DType::f32;
  std::int64_t heads = 4, head_dim = 64, longest = 32768;
  double full_seconds = 20;
  bool cpu_time = false, csv = false;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string key = argv[i];
    const auto value = [&] {
      require(i + 1 < argc, "bench", key, " wants a value");
      return std::string(argv[++i]);
    };
    if (key == "--threads") o.threads = std::atoi(value().c_str());
    else if (key == "--dtype") o.dtype = value() == "bf16" ? DType::bf16 : DType::f32;
    else if (key == "--heads") o.heads = std::atoll(value().c_str());
    else if (key == "--head-dim") o.head_dim = std::atoll(value().c_str());
    else if (key == "--longest") o.longest = std::atoll(value().c_str());
    else if (key == "--full-seconds") o.full_seconds = std::atof(value().c_str());
    else if (key == "--cpu-time") o.cpu_time = true;
    else if (key == "--csv") o.csv = true;
    else fail(Exit::config, "bench", "unknown option ", key);
  }
  return o;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

double seconds(bool cpu_time) {
  if (cpu_time) {
    timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Times {
  double forward = 1e30, backward = 1e30;  // seconds
  double total() const { return forward + backward; }
};

struct Pattern {
  std::string name;
  AttentionSpec spec;
};

Times measure(const Pattern& pattern, std::int64_t T, const Options& o) {
  const AttentionSpec& spec = pattern.spec;
  const Variable qkv = Variable::leaf(random_normal({1, T, spec.qkv_features()}, 0, 1, 1, 1, o.dtype));
  Variable scores;
  if (spec.kind == AttentionKind::sparsek) scores = Variable::leaf(random_normal({1, spec.n_kv_heads, T}, 0, 1, 1, 2));
  const AttentionInputs in{spec, {.rotary_dims = spec.head_dim}, {}};
  const Tensor seed = random_normal({1, T, spec.n_heads * spec.head_dim}, 0, 1, 1, 3, o.dtype);
  Times best;
  double spent = 0;
  for (int run = 0; run < 7 && (run < 2 || spent < 1.5); ++run) {
    const double start = seconds(o.cpu_time);
    const Variable out = attention(qkv, scores, in);
    const double middle = seconds(o.cpu_time);
    backward(out, seed);
    const double end = seconds(o.cpu_time);
    const double share = o.cpu_time ? o.threads : 1;
    best.forward = std::min(best.forward, (middle - start) / share);
    best.backward = std::min(best.backward, (end - middle) / share);
    spent += end - start;
  }
  return best;
}

// Multiply-adds x 2 of the two products of the forward, over visible pairs.
double forward_flops(const AttentionSpec& spec, std::int64_t T) {
  const double t = static_cast<double>(T);
  return spec.kind == AttentionKind::full ? 4.0 * static_cast<double>(spec.head_dim * spec.n_heads) * t * (t + 1) / 2
                                          : 0;
}

void print_row(const Options& o, const std::string& name, std::int64_t T, const Times& t, const AttentionSpec& spec) {
  const double per_token = 1e9 / static_cast<double>(T);
  const double flops = forward_flops(spec, T);
  if (o.csv) {
    std::printf("%s,%lld,%.1f,%.1f,%.1f,%.1f\n", name.c_str(), static_cast<long long>(T), t.forward * per_token,
                t.backward * per_token, t.total() * per_token, flops / t.forward * 1e-9);
  } else {
    std::printf("| %s | %lld | %.0f | %.0f | %.0f | %s |\n", name.c_str(), static_cast<long long>(T),
                t.forward * per_token, t.backward * per_token, t.total() * per_token,
                flops > 0 ? cat(static_cast<int>(flops / t.forward * 1e-9)).c_str() : "");
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  const Options o = parse(argc, argv);
  set_num_threads(o.threads);
  AttentionSpec base;
  base.n_heads = base.n_kv_heads = o.heads;
  base.head_dim = o.head_dim;
  std::vector<Pattern> patterns = {{"full", base}, {"sliding_window W=512", base}, {"sparsek k=256 W=256", base}};
  patterns[1].spec.kind = AttentionKind::sliding_window;
  patterns[1].spec.window = 512;
  patterns[2].spec.kind = AttentionKind::sparsek;
  patterns[2].spec.window = 256;
  patterns[2].spec.sparsek.k = 256;
  patterns[2].spec.sparsek.slope = 1.0 / 32768;
  if (o.csv) {
    std::printf("pattern,T,forward_ns,backward_ns,total_ns,forward_gflops\n");
  } else {
    std::printf("CPU: %s, %d threads, %s, B=1 H=%lld D=%lld, ns per token (%s)\n\n", cpu_name().c_str(), o.threads,
                std::string(name_of(o.dtype)).c_str(), static_cast<long long>(o.heads),
                static_cast<long long>(o.head_dim), o.cpu_time ? "processor time / threads" : "wall time");
    std::printf("| pattern | T | forward | backward | sum | forward GFLOP/s |\n|---|---|---|---|---|---|\n");
  }
  for (const Pattern& p : patterns) {
    double last = 0;
    for (std::int64_t T = 1024; T <= o.longest; T *= 2) {
      if (p.spec.kind == AttentionKind::full && 4 * last > o.full_seconds) break;
      const Times t = measure(p, T, o);
      last = t.total();
      print_row(o, p.name, T, t, p.spec);
    }
  }
  return 0;
} catch (const Error& e) {
  std::fprintf(stderr, "error: %s\n", e.what());
  return static_cast<int>(e.code());
}
