// Letters: B batch, T time, H query heads, Hkv key-value heads, Hs = Hkv score heads, D head size, F features of qkv.
#include "train/bench_attention.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "attention/attention.h"
#include "attention/attention_cost.h"
#include "attention/dense.h"
#include "attention/pattern.h"
#include "core/rng.h"
#include "dist/communicator.h"
#include "io/safetensors.h"
#include "tensor/profile.h"
#include "train/bench_attention_report.h"
#include "train/compute.h"

namespace sieve {
namespace {

constexpr std::string_view kWhere = "bench attention";

template <class Names>
int index_of(const Names& names, const std::string& name, std::string_view what) {
  std::string known;
  for (std::size_t i = 0; i < std::size(names); ++i) {
    if (names[i] == name) return static_cast<int>(i);
    known += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  fail(Exit::config, kWhere, what, " \"", name, "\" is unknown: take one of ", known);
}

// Options with every default filled in.
struct Bench {
  const BenchAttentionOptions& options;
  Stream stream;
  DType dtype = DType::f32;
  std::vector<std::int64_t> lengths;  // rising
  std::int64_t B = 0, H = 0, Hkv = 0, D = 0;

  bool gpu() const { return stream.device.is_cuda(); }
};

std::vector<std::int64_t> lengths_of(const BenchAttentionOptions& options, bool gpu) {
  std::vector<std::int64_t> lengths;
  for (const std::string& text : options.lengths) lengths.push_back(parse_length(text));
  if (lengths.empty()) {
    for (std::int64_t T = 1024; T <= (gpu ? 131072 : 8192); T *= 2) lengths.push_back(T);
  }
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return lengths;
}

Bench resolve(const BenchAttentionOptions& o) {
  Bench bench{.options = o, .stream = compute_stream(resolve_device(device_from_name(o.device)), 0)};
  bench.lengths = lengths_of(o, bench.gpu());
  const std::int64_t rows = o.rows > 0 ? o.rows : bench.gpu() ? 64 : 4;
  bench.H = o.heads > 0 ? o.heads : std::min<std::int64_t>(16, rows);
  bench.Hkv = o.kv_heads > 0 ? o.kv_heads : bench.H;
  bench.D = o.head_dim;
  if (rows % bench.H != 0)
    fail(Exit::config, kWhere, "--rows ", rows, " is not a multiple of --heads ", bench.H, ": rows = batch * heads");
  bench.B = rows / bench.H;
  static constexpr std::string_view kDtypes[] = {"auto", "bf16", "fp32"};
  const int dtype = index_of(kDtypes, o.dtype, "--dtype");
  bench.dtype = dtype == 1 || (dtype == 0 && bench.gpu()) ? DType::bf16 : DType::f32;
  return bench;
}

// The numbers of the types that show pairs, as the comparison has them (configs/compare/novels.yaml): 1,024 rows at
// T = 4,096, but for strided, which visits least at its own length.
void set_pattern_numbers(AttentionSpec& spec) {
  PatternSpec& p = spec.pattern;
  switch (spec.kind) {
    case AttentionKind::strided: p.stride = 64; break;
    case AttentionKind::fixed: p.stride = 128, p.summary = 60; break;
    case AttentionKind::longformer: spec.window = 1008, p.globals = 16; break;
    case AttentionKind::bigbird: p.block = 64, p.global_blocks = 2, p.window_blocks = p.random_blocks = 7; break;
    case AttentionKind::hash: p.buckets = 4; break;
    case AttentionKind::moba: p.block = 256, p.blocks = 4; break;
    case AttentionKind::full:
    case AttentionKind::sliding_window:
    case AttentionKind::sparsek: break;
    default:
      fail(Exit::config, kWhere, "--patterns: ", kAttentionKindNames[static_cast<std::size_t>(spec.kind)],
           " is not timed alone: take a model that has it (sieve bench step CONFIG)");
  }
}

AttentionInputs inputs_of(const Bench& bench, const std::string& pattern) {
  const BenchAttentionOptions& o = bench.options;
  AttentionInputs in;
  AttentionSpec& spec = in.spec;
  spec.kind = static_cast<AttentionKind>(index_of(kAttentionKindNames, pattern, "--patterns"));
  spec.n_heads = bench.H;
  spec.n_kv_heads = bench.Hkv;
  spec.head_dim = bench.D;
  if (spec.kind != AttentionKind::full) spec.window = o.window;
  spec.sparsek.k = o.k;
  spec.sparsek.pool = o.pool;
  spec.sparsek.slope = o.slope;
  spec.sparsek.gate = static_cast<GateMode>(index_of(kGateModeNames, o.gate, "--gate"));
  in.rope.rotary_dims = o.rotary ? bench.D : 0;
  set_pattern_numbers(spec);
  check_attention(spec, in.rope);
  return in;
}

// Random data (B, T, features). The host draws 512 positions; longer rows repeat them, which changes neither the work
// nor its cost, because the copies lie at places of their own.
Tensor random_rows(const Bench& bench, std::int64_t T, std::int64_t features, std::uint64_t seed) {
  const std::int64_t drawn = std::min<std::int64_t>(T, 512);
  const Tensor piece = random_normal({1, drawn, features}, 0, 1, seed, 1, bench.dtype).to(bench.stream);
  Tensor all = empty({bench.B, T, features}, bench.dtype, bench.stream);
  for (std::int64_t b = 0; b < bench.B; ++b) {
    for (std::int64_t at = 0; at < T; at += drawn) {
      const std::int64_t n = std::min(drawn, T - at);
      all.slice(0, b, b + 1).slice(1, at, at + n).copy_from(piece.slice(1, 0, n));
    }
  }
  return all;
}

Tensor scores_of_file(const std::string& path, const Shape& shape) {
  const Tensor file = SafetensorsFile(path).read("scores");
  if (file.rank() != 2 || file.dtype() != DType::f32 || file.numel() == 0)
    fail(Exit::data, path, "wants a tensor scores f32 (rows, T), got ", name_of(file.dtype()), " ", file.shape());
  const std::span<const float> values = file.span<float>();
  if (!std::all_of(values.begin(), values.end(), [](float s) { return std::isfinite(s); }))
    fail(Exit::data, path, "scores are not all finite");
  Tensor scores = empty(shape, DType::f32);
  const std::int64_t T = shape[2], rows = scores.numel() / T;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* from = values.data() + r % file.size(0) * file.size(1);
    for (std::int64_t t = 0; t < T; ++t) scores.data<float>()[r * T + t] = from[t % file.size(1)];
  }
  return scores;
}

Tensor scores_of(const Bench& bench, std::int64_t T) {
  const std::string& kind = bench.options.scores;
  const Shape shape{bench.B, bench.Hkv, T};
  if (kind == "iid" || kind == "sigma4") return random_normal(shape, 0, kind == "iid" ? 1 : 4, 1, 2);
  if (kind != "fifo") return scores_of_file(kind, shape);
  Tensor scores = empty(shape, DType::f32);
  for (std::int64_t i = 0; i < scores.numel(); ++i)
    scores.data<float>()[i] = static_cast<float>(i % T) / 64;  // exact: no ties, 64 scores in the band
  return scores;
}

// What queries of hash and moba might have chosen (attention/kernels/pattern.h): random buckets; the own block and
// random earlier ones. Undefined for all others. How long choosing takes is not part of the times.
Tensor choice_of(const Bench& bench, const AttentionSpec& spec, std::int64_t T) {
  const bool hash = spec.kind == AttentionKind::hash;
  if (!hash && spec.kind != AttentionKind::moba) return {};
  const std::int64_t most = hash ? 1 : spec.pattern.blocks;
  const Philox random{1, 4};
  Tensor choice = empty({bench.B, bench.H, T, most}, DType::i32);
  std::int32_t* list = choice.data<std::int32_t>();
  for (std::int64_t row = 0; row < bench.B * bench.H * T; ++row, list += most) {
    const auto at = static_cast<std::uint64_t>(row);
    if (hash) {
      *list = static_cast<std::int32_t>(random.bits64(at) % static_cast<std::uint64_t>(spec.pattern.buckets));
      continue;
    }
    // One block out of each of most - 1 equal shares of the earlier ones: they differ and ascend.
    const std::int64_t own = row % T / spec.pattern.block, shares = std::min(own, most - 1);
    std::fill(list, list + most, kNoChoice);
    for (std::int64_t s = 0; s < shares; ++s) {
      const std::int64_t begin = own * s / shares, size = own * (s + 1) / shares - begin;
      const auto drawn = random.bits64(at * 64 + static_cast<std::uint64_t>(s)) % static_cast<std::uint64_t>(size);
      list[s] = static_cast<std::int32_t>(begin + static_cast<std::int64_t>(drawn));
    }
    list[shares] = static_cast<std::int32_t>(own);
  }
  return choice.to(bench.stream);
}

// One attention layer with what goes in from both sides. Backward runs as a node of the graph, without the engine that
// would add the gradient up in fp32: in a model that is the business of the op before.
class Layer {
 public:
  Layer(const Bench& bench, const std::string& pattern, std::int64_t T)
      : in_(inputs_of(bench, pattern)),
        qkv_(Variable::leaf(random_rows(bench, T, in_.spec.qkv_features(), 1))),
        dout_(random_rows(bench, T, bench.H * bench.D, 3)),
        cold_(empty({bench.gpu() ? 1 << 30 : 64 << 20}, DType::u8, bench.stream)) {
    if (in_.spec.kind == AttentionKind::sparsek) scores_ = Variable::leaf(scores_of(bench, T).to(bench.stream));
    choice_ = choice_of(bench, in_.spec, T);
  }
  const AttentionSpec& spec() const { return in_.spec; }
  void forward() { out_ = choice_.defined() ? pattern_attention(qkv_, choice_, in_) : attention(qkv_, scores_, in_); }
  void backward() {
    out_.node()->backward(dout_);
    out_ = Variable();
  }
  // Larger than every cache: what comes next reads memory. While a GPU does this (a third of a millisecond) the host
  // gets ahead of it, so that short kernels are not timed with their launches.
  void empty_cache() { cold_.zero(); }

 private:
  AttentionInputs in_;
  Variable qkv_, scores_, out_;
  Tensor dout_, cold_, choice_;
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// `passes` passes between events, all queued before the first is waited for.
void time_passes(const Bench& bench, Layer& layer, std::int64_t passes, AttentionTiming& out) {
  std::vector<Event> events;
  const auto mark = [&] {
    events.emplace_back(bench.stream.device);
    events.back().record(bench.stream);
  };
  for (std::int64_t i = 0; i < passes; ++i) {
    layer.empty_cache();
    mark();
    layer.forward();
    mark();
    if (bench.options.forward_only) continue;
    layer.empty_cache();
    mark();
    layer.backward();
    mark();
  }
  synchronize(bench.stream);
  std::vector<double> forward, backward, total;
  for (std::size_t e = 0; e < events.size();) {
    forward.push_back(events[e + 1].seconds_since(events[e]));
    backward.push_back(bench.options.forward_only ? 0 : events[e + 3].seconds_since(events[e + 2]));
    total.push_back(forward.back() + backward.back());
    e += bench.options.forward_only ? 2 : 4;
  }
  out.passes = passes;
  out.forward = median(forward);
  out.backward = median(backward);
  out.total = median(total);
}

bool of_selection(const std::string& kernel) { return kernel.starts_with("Select") || kernel.starts_with("RowList"); }

// Kernel by kernel, with events around each: a pass of its own, which the times above do not pay for.
void profile_passes(const Bench& bench, Layer& layer, std::int64_t passes, AttentionTiming& out) {
  std::vector<double> selection, selection_backward;
  const auto profiled = [&](std::vector<double>& sums, auto&& pass) {
    layer.empty_cache();
    KernelProfile::start();
    pass();
    sums.push_back(0);
    for (const auto& kernel : KernelProfile::stop()) {
      if (of_selection(kernel.kernel)) sums.back() += kernel.seconds;
      auto known = std::find_if(out.kernels.begin(), out.kernels.end(),
                                [&](const auto& entry) { return entry.first == kernel.kernel; });
      if (known == out.kernels.end()) known = out.kernels.insert(known, {kernel.kernel, 0.0});
      known->second += kernel.seconds / static_cast<double>(passes);
    }
  };
  for (std::int64_t i = 0; i < passes; ++i) {
    profiled(selection, [&] { layer.forward(); });
    if (!bench.options.forward_only) profiled(selection_backward, [&] { layer.backward(); });
  }
  out.selection = median(selection);
  if (!selection_backward.empty()) out.selection_backward = median(selection_backward);
}

AttentionTiming measure(const Bench& bench, const std::string& pattern, std::int64_t T) {
  AttentionTiming out{.pattern = pattern, .T = T, .B = bench.B};
  try {
    Layer layer(bench, pattern, T);
    const std::int64_t least = bench.gpu() ? 5 : 3;
    time_passes(bench, layer, bench.gpu() ? 2 : 1, out);  // warm-up: libraries prepare the shape
    time_passes(bench, layer, 1, out);
    const auto affordable = static_cast<std::int64_t>(bench.options.seconds / std::max(out.total, 1e-6));
    time_passes(bench, layer, std::clamp<std::int64_t>(affordable, least, 50), out);
    const bool selects = layer.spec().kind == AttentionKind::sparsek;
    profile_passes(bench, layer, selects ? std::min(out.passes, least) : 1, out);
    const double products = 4 * visible_pairs(layer.spec(), T) * static_cast<double>(bench.B * bench.H * bench.D);
    out.forward_tflops = products / out.forward * 1e-12;
    if (out.backward > 0) out.backward_tflops = 2.5 * products / out.backward * 1e-12;
  } catch (const Error& error) {
    if (error.code() != Exit::memory) throw;
    out.missing = "out of memory";
  }
  return out;
}

// Whether the length is worth its time: a longer one takes in proportion, under full attention to the square.
bool too_long(const std::vector<AttentionTiming>& done, const std::string& pattern, std::int64_t T, double limit) {
  const AttentionTiming* last = nullptr;
  for (const AttentionTiming& t : done)
    if (t.pattern == pattern) last = &t;
  if (last == nullptr) return false;
  const double ratio = static_cast<double>(T) / static_cast<double>(last->T);
  return !last->missing.empty() || last->total * ratio * (pattern == "full" ? ratio : 1) > limit;
}

}  // namespace

std::int64_t parse_length(const std::string& text) {
  std::size_t digits = 0;
  std::int64_t value = 0;
  while (digits < text.size() && digits < 10 && text[digits] >= '0' && text[digits] <= '9')
    value = 10 * value + (text[digits++] - '0');
  const std::string unit = text.substr(digits);
  const std::int64_t scale = unit.empty() ? 1 : unit == "k" || unit == "Ki" ? 1024 : unit == "M" ? 1048576 : 0;
  const std::int64_t longest = (std::int64_t{1} << 31) - 1;
  if (digits == 0 || scale == 0 || value < 1 || value > longest / scale)
    fail(Exit::config, kWhere, "--lengths: \"", text, "\" is no length: write 512, 4k (4,096) or 1M, at most ",
         longest);
  return value * scale;
}

double visible_pairs(const AttentionSpec& spec, std::int64_t T) {
  // The queries 1 .. t, of which the i-th sees min(i, most) keys.
  const auto pairs = [](double t, double most) {
    most = std::min(most, t);
    return most * t - most * (most - 1) / 2;
  };
  const auto t = static_cast<double>(T), w = static_cast<double>(spec.window);
  if (spec.kind == AttentionKind::full) return pairs(t, t);
  if (shows_pairs(spec.kind)) return mean_keys(spec, T) * t;
  double sum = pairs(t, w);
  if (spec.kind == AttentionKind::sparsek && t > w) sum += pairs(t - w, static_cast<double>(spec.sparsek.k));
  return sum;
}

Exit bench_attention(const BenchAttentionOptions& options, Communicator& comm) {
  if (comm.rank() != 0) return Exit::ok;
  const Bench bench = resolve(options);
  for (const std::string& pattern : options.patterns) {  // every mistake before the first measurement
    if (inputs_of(bench, pattern).spec.kind == AttentionKind::sparsek) scores_of(bench, 1);
  }
  if (options.deterministic) set_gpu_determinism(true);
  if (options.own_engine) allow_dense_attention(false);
  AttentionReport report(options, {.device = describe_device(bench.stream),
                                   .dtype = std::string(name_of(bench.dtype)),
                                   .B = bench.B,
                                   .H = bench.H,
                                   .Hkv = bench.Hkv,
                                   .D = bench.D});
  std::vector<AttentionTiming> timings;
  for (const std::string& pattern : options.patterns) {
    for (const std::int64_t T : bench.lengths) {
      timings.push_back(too_long(timings, pattern, T, options.pass_seconds)
                            ? AttentionTiming{.pattern = pattern, .T = T, .B = bench.B, .missing = "left out"}
                            : measure(bench, pattern, T));
      report.add(timings.back());
    }
  }
  report.finish();
  return Exit::ok;
}

}  // namespace sieve
