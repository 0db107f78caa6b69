// Selection step by step on a GPU against StreamingSelection: the same slots, the same keys in them, thresholds to fp64
// rounding, gates of what the query sees.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "attention/device_cache.h"
#include "attention/streaming_selection.h"
#include "core/build.h"
#include "core/rng.h"
#include "support/catch.h"
#include "support/gpu.h"
#include "tensor/dispatch.h"

using namespace sieve;
using sieve::test::gpu_stream;

namespace {

constexpr std::int64_t kBatch = 2, kHeads = 3, kRows = kBatch * kHeads;

enum class Scores { normal, wide, quantised, equal, rising, falling, plateaus };

float score_of(Scores kind, std::int64_t row, std::int64_t position) {
  const Philox random{static_cast<std::uint64_t>(row) + 5, 3};
  const auto draw = [&](std::int64_t n) { return random.uniform(static_cast<std::uint64_t>(position * 4 + n)); };
  const double bell = draw(0) + draw(1) + draw(2) + draw(3) - 2;
  switch (kind) {
    case Scores::normal: return static_cast<float>(bell);
    case Scores::wide: return static_cast<float>(8 * bell);
    case Scores::quantised: return static_cast<float>(std::round(2 * bell) / 2);
    case Scores::equal: return 0.25F;
    case Scores::rising: return static_cast<float>(position) * 0.01F;
    case Scores::falling: return static_cast<float>(position) * -0.01F;
    case Scores::plateaus: return static_cast<float>(std::floor(3 * draw(0)) * 5 + 0.1 * draw(1));
  }
  return 0;
}

template <class T>
std::vector<T> fetched(const T* device, std::int64_t n) {
  std::vector<T> host(static_cast<std::size_t>(n));
  copy_bytes(host.data(), Stream{}, device, gpu_stream(), host.size() * sizeof(T));
  return host;
}

template <class Args>
void queue(const Args& args) {
  if constexpr (build::with_cuda) cuda::run(args, gpu_stream());
}

struct Case {
  std::int64_t k, window, pool;
  GateMode gate;
  Candidates candidates;
  double slope, temperature;
};

// What differed, counted; a message shows the first place.
struct Differences {
  int keys = 0, slots = 0, gates = 0;
  double tau = 0;
};

Differences compare(const Case& c, Scores kind, std::int64_t steps) {
  const Stream stream = gpu_stream();
  AttentionSpec spec;
  spec.kind = AttentionKind::sparsek;
  spec.window = c.window, spec.n_heads = kHeads, spec.n_kv_heads = kHeads, spec.head_dim = 16;
  spec.sparsek = {.k = c.k, .slope = c.slope, .temperature = c.temperature, .gate = c.gate, .candidates = c.candidates};
  spec.sparsek.pool = c.pool;
  const DeviceCache cache(spec, {}, kBatch, DType::f32, 0, 0, stream);
  const DecodeSelection s = cache.selection();
  Tensor list = empty({static_cast<std::int64_t>(sizeof(s))}, DType::u8);
  std::memcpy(list.raw(), &s, sizeof(s));
  list = list.to(stream);
  Tensor position = zeros({1}, DType::i64, stream), nan = zeros({1}, DType::i64, stream);
  DecodePushArgs push;
  push.scores = cache.score_arguments();
  push.scores.position = position.data<std::int64_t>(), push.B = kBatch;
  push.scores.nan_count = static_cast<unsigned long long*>(nan.raw());
  DecodeSelectArgs select;
  select.layers = static_cast<const DecodeSelection*>(list.raw()), select.count = 1, select.most_rows = kRows;
  select.position = position.data<std::int64_t>(), select.follows = push.follows = false;

  const bool at_once = c.candidates == Candidates::at_once, soft = c.gate != GateMode::hard;
  std::vector<StreamingSelection> wanted(kRows, StreamingSelection(c.k, c.pool, c.slope, c.temperature, soft));
  Differences out;
  for (std::int64_t p = 0; p < steps; ++p) {
    position.copy_from(from_values<std::int64_t>(std::vector<std::int64_t>{p}, {1}));
    std::vector<float> scores;
    for (std::int64_t row = 0; row < kRows; ++row) scores.push_back(score_of(kind, row, p));
    const Tensor there = from_values<float>(scores, {kRows}).to(stream);
    push.s_BH = there.data<float>();
    if (at_once) queue(push);
    queue(select);
    if (!at_once) queue(push);
    const auto keys = fetched(s.key, kRows * c.k);
    const auto incoming = fetched(s.incoming, kRows);
    const auto seen = fetched(s.seen, kRows * c.k);
    const auto tau = soft ? fetched(s.tau, kRows) : std::vector<double>(kRows);
    for (std::int64_t row = 0; row < kRows; ++row) {
      StreamingSelection& w = wanted[static_cast<std::size_t>(row)];
      const std::int64_t key = at_once ? p : p - c.window;
      const std::int64_t slot = key < 0 ? -1 : w.offer(score_of(kind, row, key), key).slot;
      out.slots += slot != incoming[static_cast<std::size_t>(row)];
      for (std::int64_t i = 0; i < c.k; ++i) {
        const auto at = static_cast<std::size_t>(row * c.k + i);
        const bool taken = i < w.size(), shown = taken && p - w.key(i) >= c.window;
        out.keys += keys[at] != (taken ? w.key(i) : -1);
        const double m = !shown ? -1 : soft ? w.gate(i) : 1;
        out.gates += !(std::abs(seen[at] - m) <= 1e-6);
      }
      const double exact = w.thresholds().tau(), got = tau[static_cast<std::size_t>(row)];
      if (soft && !(std::isinf(exact) && exact == got)) out.tau = std::max(out.tau, std::abs(got - exact));
    }
  }
  CHECK(nan.item() == 0);
  return out;
}

}  // namespace

TEST_CASE("GPU: selection step by step has the slots, keys and thresholds of the streaming one", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const Case cases[] = {
      {16, 12, 4, GateMode::kv, Candidates::on_exit, 0, 1},
      {16, 12, 2, GateMode::prob, Candidates::on_exit, 1e-3, 0.5},
      {1, 1, 3, GateMode::value, Candidates::on_exit, 0, 1},
      {300, 5, 2, GateMode::kv, Candidates::on_exit, 0, 2},
      {16, 12, 4, GateMode::hard, Candidates::on_exit, 0, 1},
      {16, 12, 4, GateMode::kv, Candidates::at_once, 1e-2, 1},
      {5, 1, 2, GateMode::hard, Candidates::at_once, 0, 1},
  };
  for (const Case& c : cases) {
    for (const Scores kind : {Scores::normal, Scores::wide, Scores::quantised, Scores::equal, Scores::rising,
                              Scores::falling, Scores::plateaus}) {
      const Differences d = compare(c, kind, c.k > 100 ? 700 : 150);
      INFO("k " << c.k << ", window " << c.window << ", pool " << c.pool << ", gate " << static_cast<int>(c.gate)
                << ", at once " << (c.candidates == Candidates::at_once) << ", scores " << static_cast<int>(kind));
      CHECK(d.slots == 0);
      CHECK(d.keys == 0);
      CHECK(d.gates == 0);
      CHECK(d.tau <= 1e-11);
    }
  }
}

TEST_CASE("GPU: a score that is no number is counted", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const Stream stream = gpu_stream();
  AttentionSpec spec;
  spec.kind = AttentionKind::sparsek;
  spec.window = 4, spec.n_heads = spec.n_kv_heads = 2, spec.head_dim = 16, spec.sparsek.k = 4;
  const DeviceCache cache(spec, {}, 1, DType::bf16, 0, 0, stream);
  const Tensor position = zeros({1}, DType::i64, stream), nan = zeros({1}, DType::i64, stream),
               scores = full({2}, std::nan(""), DType::f32, stream);
  DecodePushArgs push;
  push.scores = cache.score_arguments();
  push.scores.position = position.data<std::int64_t>(), push.B = 1, push.s_BH = scores.data<float>();
  push.follows = false;
  push.scores.nan_count = static_cast<unsigned long long*>(nan.raw());
  queue(push);
  CHECK(nan.item() == 2);
}
