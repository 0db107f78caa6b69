// The Hopper engine (kernels/cuda/hopper) against the general one, which other tests hold against the CPU: fp32 for the
// exact answer, bf16 for the error that is allowed.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "attention/warpgroup_engine.h"
#include "gpu_attention.h"
#include "support/catch.h"
#include "support/compare.h"
#include "tensor/runtime.h"

using namespace sieve;
using namespace sieve::test;

namespace {

class GeneralOnly {
 public:
  GeneralOnly() { allow_warpgroup_engine(false); }
  ~GeneralOnly() { allow_warpgroup_engine(true); }
};
EngineRun run_general(const ReferenceInput& in, DType dtype, const std::vector<double>& dout) {
  const GeneralOnly general;
  return run_on_gpu(in, dtype, dout);
}

// On a Hopper GPU the engine must be there: a build that lost it would else compare the general one with itself.
bool serves_hopper() {
  ReferenceInput in;
  in.spec = make_spec(AttentionKind::sparsek, 1, 1, 64);
  return warpgroup_engine(in.spec, in.rope, on_gpu(tensor_of({0}, {1, 1, 1}, DType::bf16)));
}
#define SIEVE_NEEDS_HOPPER()                              \
  SIEVE_NEEDS_GPU();                                      \
  if (device_info(gpu_stream().device).major != 9) {      \
    WARN("not a GPU of compute capability 9.0: skipped"); \
    return;                                               \
  }                                                       \
  REQUIRE(serves_hopper())

// Lengths and sizes at the edges of tiles (64, 128, 192 queries; 64 and 128 keys), of lists (768 queries) and of a
// selection's first eviction (k + W).
ReferenceInput draw_hopper_input(Draw& d, const std::string& kind, std::int64_t longest) {
  constexpr std::int64_t kLengths[] = {1,   2,   63,  64,  65,  127, 128, 129, 191, 192,  193,  255,
                                       257, 383, 385, 511, 513, 767, 768, 769, 961, 1023, 1025, 1537};
  constexpr std::int64_t kBudgets[][2] = {{1, 1},   {16, 32},  {64, 1},   {1, 64},  {50, 50},   {64, 64},
                                          {70, 63}, {128, 65}, {100, 30}, {200, 5}, {129, 192}, {300, 500}};
  ReferenceInput in;
  const std::int64_t Hkv = d.integer(1, 3), G = d.chance(0.5) ? 1 : d.integer(2, 4);
  const auto of =
      d.chance(0.1) ? AttentionKind::full : (d.chance(0.2) ? AttentionKind::sliding_window : AttentionKind::sparsek);
  in.spec = make_spec(of, Hkv * G, Hkv, d.chance(0.6) ? 64 : 128);
  in.B = d.chance(0.8) ? 1 : 2;
  in.T = std::min(longest, d.chance(0.6) ? kLengths[d.integer(0, 23)] : d.integer(1, 1600));
  const auto& budget = kBudgets[d.integer(0, 11)];
  in.spec.sparsek.k = budget[0], in.spec.window = budget[1];
  in.spec.sparsek.gate = static_cast<GateMode>(d.integer(0, 3));
  in.spec.sparsek.candidates = d.chance(0.7) ? Candidates::on_exit : Candidates::at_once;
  in.spec.sparsek.pool = d.chance(0.3) ? 0 : 4;
  in.spec.sparsek.slope = d.chance(0.6) ? 0 : 0.01 * d.uniform();
  in.spec.sparsek.temperature = d.chance(0.6) ? 1 : 0.25 + 2 * d.uniform();
  in.score_heads = d.chance(0.7) ? Hkv : 1;
  if (d.chance(0.5)) in.rope.rotary_dims = d.chance(0.5) ? in.spec.head_dim : 16 * d.integer(1, 4);
  if (d.chance(0.25)) fill_documents(in, d);
  fill_values(in, d, kind);
  return in;
}

// A few keys whose logits dwarf all others: a masked one that is let in, or counted in a maximum, would show.
void make_loud(ReferenceInput& in, Draw& d) {
  const std::int64_t F = in.spec.qkv_features(), D = in.spec.head_dim, first = in.spec.n_heads * D;
  const std::int64_t rows = in.B * in.T;
  for (std::int64_t row = d.integer(0, rows - 1); row < rows; row += 1 + rows / 5) {
    for (std::int64_t f = first; f < first + in.spec.n_kv_heads * D; ++f)
      in.qkv[static_cast<std::size_t>(row * F + f)] *= 32;
  }
}

// out, dq, dk, dv, dscores; what a run does not have stays undefined.
constexpr int kParts = 5;
constexpr const char* kPartNames[kParts] = {"out", "dq", "dk", "dv", "dscores"};
std::vector<Tensor> parts_of(const EngineRun& run, const AttentionSpec& spec) {
  const std::int64_t q = spec.n_heads * spec.head_dim, kv = spec.n_kv_heads * spec.head_dim;
  const auto cut = [&](std::int64_t begin, std::int64_t end) { return run.dqkv.slice(2, begin, end).contiguous(); };
  return {run.out, cut(0, q), cut(q, q + kv), cut(q + kv, q + 2 * kv), run.dscores};
}

// Largest difference over the largest value; a gradient that cancels to nothing (one key: dS = P (dP - delta) = 0) is
// measured on the scale of the others.
double error_of(const Tensor& got, const Tensor& exact, double scale) {
  const double difference = max_difference(got, exact);
  return difference == 0 ? 0 : difference / std::max(max_abs(exact), 1e-3 * scale);
}

struct Errors {
  double hopper[kParts] = {}, general[kParts] = {};
  std::string where[kParts];

  void add(const ReferenceInput& in, const EngineRun& fast, const EngineRun& slow, const EngineRun& exact,
           const std::string& what) {
    const auto f = parts_of(fast, in.spec), s = parts_of(slow, in.spec), x = parts_of(exact, in.spec);
    for (int part = 0; part < kParts; ++part) {
      const auto at = static_cast<std::size_t>(part);
      if (!x[at].defined()) continue;
      const double scale = part == 0 || part == 4 ? 0 : max_abs(exact.dqkv);
      const double e = error_of(f[at], x[at], scale), g = error_of(s[at], x[at], scale);
      if (!(e <= hopper[part])) hopper[part] = e, where[part] = what;
      if (!(g <= general[part])) general[part] = g;
      INFO(what << " " << kPartNames[part] << ": " << e << ", the general engine's " << g);
      CHECK(e <= std::max(0.03, 4 * g));  // one case alone; a wrong mask is wrong by far more
    }
  }
};

}  // namespace

TEST_CASE("the Hopper engine: 500 random cases against fp32", "[gpu]") {
  SIEVE_NEEDS_HOPPER();
  std::map<std::string, Errors> errors;  // quiet and loud keys apart: a yardstick of loud ones would excuse the others
  for (std::uint64_t c = 0; c < 500; ++c) {
    Draw d(301, c);
    ReferenceInput in = draw_hopper_input(d, kScoreKinds[c % kScoreKinds.size()], 1600);
    const bool loud = c % 7 == 3;
    if (loud) make_loud(in, d);
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const EngineRun exact = run_general(in, DType::f32, dout), slow = run_general(in, DType::bf16, dout),
                    fast = run_on_gpu(in, DType::bf16, dout);
    errors[loud ? "loud" : "quiet"].add(in, fast, slow, exact, cat("case ", c, ": ", describe(in)));
  }
  for (const auto& [kind, e] : errors) {
    for (int x = 0; x < kParts; ++x) {
      CAPTURE(kind, kPartNames[x], e.where[x]);
      CHECK(e.hopper[x] <= 2 * e.general[x]);
    }
  }
}

TEST_CASE("the Hopper engine: a few short rows", "[gpu][small]") {
  SIEVE_NEEDS_HOPPER();
  Errors errors;
  for (std::uint64_t c = 0; c < 8; ++c) {
    Draw d(302, c);
    ReferenceInput in = draw_hopper_input(d, "normal", 200);
    in.spec.n_heads = in.spec.n_kv_heads = 1, in.score_heads = 1, in.B = 1,
    in.T = 70 + 40 * static_cast<std::int64_t>(c % 4);
    in.spec.head_dim = c % 2 == 0 ? 64 : 128, in.spec.kind = c == 0 ? AttentionKind::full : AttentionKind::sparsek;
    in.spec.window = 20, in.spec.sparsek.k = 30, in.spec.sparsek.gate = static_cast<GateMode>(c % 4);
    in.rope.rotary_dims = c % 3 == 0 ? 32 : 0;
    in.document_starts.clear();
    if (c % 4 == 3) fill_documents(in, d);
    fill_values(in, d, "normal");
    const auto dout = draw_values(d, in.T * in.spec.head_dim);
    errors.add(in, run_on_gpu(in, DType::bf16, dout), run_general(in, DType::bf16, dout),
               run_general(in, DType::f32, dout), cat("case ", c, ": ", describe(in)));
  }
  CHECK(errors.where[0] != "");
}

// Lists of 1,536 queries, keys that live in more than 32 of them, lists longer than a block of threads reads at once.
TEST_CASE("the Hopper engine: long rows and many selected keys", "[gpu]") {
  SIEVE_NEEDS_HOPPER();
  Errors errors;
  for (const std::int64_t k : {100, 4000}) {
    ReferenceInput in;
    in.spec = make_spec(AttentionKind::sparsek, 1, 1, 64);
    in.spec.window = 64, in.spec.sparsek.k = k;
    in.T = k == 100 ? 55000 : 9000, in.score_heads = 1;
    Draw d(306, static_cast<std::uint64_t>(k));
    fill_values(in, d, "normal");
    const auto dout = draw_values(d, in.T * in.spec.head_dim);
    errors.add(in, run_on_gpu(in, DType::bf16, dout), run_general(in, DType::bf16, dout),
               run_general(in, DType::f32, dout), describe(in));
  }
  CHECK(errors.where[0] != "");
}

TEST_CASE("the Hopper engine: 100 runs give the same bits", "[gpu]") {
  SIEVE_NEEDS_HOPPER();
  for (const std::int64_t D : {64, 128}) {
    ReferenceInput in;
    in.spec = make_spec(AttentionKind::sparsek, 8, 4, D);
    in.spec.window = 200, in.spec.sparsek.k = 300;
    in.T = 3000, in.B = 2, in.score_heads = 4;
    Draw d(303, 0);
    fill_values(in, d, "normal");
    const auto dout = draw_values(d, in.B * in.T * in.spec.n_heads * in.spec.head_dim);
    const EngineRun first = run_on_gpu(in, DType::bf16, dout);
    int different = 0;
    for (int run = 1; run < 100; ++run) {
      const EngineRun again = run_on_gpu(in, DType::bf16, dout);
      different += !same_bits(again.out, first.out) || !same_bits(again.dqkv, first.dqkv) ||
                   !same_bits(again.dscores, first.dscores);
    }
    CAPTURE(D);
    CHECK(different == 0);
  }
}

TEST_CASE("the Hopper engine: other work on the GPU and late launches change no bit", "[gpu]") {
  SIEVE_NEEDS_HOPPER();
  ReferenceInput in;
  in.spec = make_spec(AttentionKind::sparsek, 4, 2, 64);
  in.spec.window = 150, in.spec.sparsek.k = 200;
  in.T = 2500, in.score_heads = 2;
  Draw d(305, 0);
  fill_values(in, d, "normal");
  const auto dout = draw_values(d, in.T * in.spec.n_heads * in.spec.head_dim);
  const EngineRun first = run_on_gpu(in, DType::bf16, dout);
  const Stream side = side_stream(gpu_stream().device);
  const Tensor from = empty({64 << 20}, DType::u8, side), to = empty_like(from);
  int different = 0;
  for (int run = 0; run < 40; ++run) {
    // Copies of another stream take caches, copy engines and multiprocessors away for a random while; the host sleeps.
    for (std::int64_t n = d.integer(0, 30); n > 0; --n) copy_bytes(to.raw(), side, from.raw(), side, from.nbytes());
    std::this_thread::sleep_for(std::chrono::microseconds(d.integer(0, 3000)));
    const EngineRun again = run_on_gpu(in, DType::bf16, dout);
    different += !same_bits(again.out, first.out) || !same_bits(again.dqkv, first.dqkv) ||
                 !same_bits(again.dscores, first.dscores);
  }
  synchronize(side);
  CHECK(different == 0);
}

TEST_CASE("the Hopper engine: NaN of a key reaches the queries that see it and no tile that does not", "[gpu]") {
  SIEVE_NEEDS_HOPPER();
  ReferenceInput in;
  in.spec = make_spec(AttentionKind::sliding_window, 1, 1, 64);
  in.spec.window = 100;
  in.T = 700;
  Draw d(304, 0);
  fill_values(in, d, "normal");
  constexpr std::int64_t kKey = 257, kTile = 64;  // a masked key's weight is 0, and 0 times NaN is NaN: by tiles
  for (std::int64_t f = 64; f < 192; ++f) in.qkv[static_cast<std::size_t>(kKey * 192 + f)] = NAN;
  const std::vector<double> out = values_of(run_on_gpu(in, DType::bf16, {}).out);
  int missed = 0, leaked = 0;
  for (std::int64_t i = 0; i < in.T; ++i) {
    const bool nan = std::isnan(out[static_cast<std::size_t>(i * 64)]);
    missed += !nan && i >= kKey && i < kKey + 100;
    leaked += nan && (i < kKey / kTile * kTile || i >= (kKey + 100 + 2 * kTile) / kTile * kTile);
  }
  CHECK(missed == 0);
  CHECK(leaked == 0);
}
