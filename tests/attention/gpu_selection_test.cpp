// SparseK's selection on a GPU against the CPU's, which other tests hold against sorted prefixes: the same members, z
// and counts, thresholds to 1e-12. The lists of rows against their definition, the way back against the CPU's.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "attention/device_plan.h"
#include "attention/kernels/select.h"
#include "attention/spans.h"
#include "gpu_attention.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

// The arrays of a selection, on the device where it runs.
struct DeviceSelection {
  Tensor from, to, z, tau, band, band_from, band_to, nan;

  DeviceSelection(const SelectArgs& how, const Tensor& scores, const Tensor& starts) {
    const Stream stream = scores.stream();
    for (Tensor* t : {&from, &to, &band, &band_from, &band_to}) *t = empty(scores.shape(), DType::i32, stream);
    for (Tensor* t : {&z, &tau}) *t = empty(scores.shape(), DType::f64, stream);
    nan = empty({1}, DType::i64, stream);
    SelectArgs a = how;
    a.scores_BHT = scores.raw(), a.dtype = scores.dtype();
    if (starts.defined()) a.document_starts_BT = starts.data<std::int32_t>();
    a.from_BHT = from.data<std::int32_t>(), a.to_BHT = to.data<std::int32_t>();
    a.z_BHT = z.data<double>(), a.tau_BHT = tau.data<double>();
    a.band_BHT = band.data<std::int32_t>();
    a.band_from_BHT = band_from.data<std::int32_t>(), a.band_to_BHT = band_to.data<std::int32_t>();
    a.nan_count = nan.data<std::int64_t>();
    launch(stream, a);
    for (Tensor* t : {&from, &to, &z, &tau, &band, &band_from, &band_to, &nan}) *t = on_host(*t);
  }
};

// |F_i| is the number of keys whose interval holds i.
bool counts_agree(const DeviceSelection& s) {
  const std::int64_t T = s.band.size(2), rows = s.band.numel() / std::max<std::int64_t>(1, T);
  for (std::int64_t row = 0; row < rows; ++row) {
    std::vector<std::int32_t> count(static_cast<std::size_t>(T) + 1, 0);
    for (std::int64_t j = row * T; j < (row + 1) * T; ++j) {
      ++count[static_cast<std::size_t>(s.band_from.data<std::int32_t>()[j])];
      --count[static_cast<std::size_t>(s.band_to.data<std::int32_t>()[j])];
    }
    std::int32_t sum = 0;
    for (std::int64_t i = 0; i < T; ++i) {
      sum += count[static_cast<std::size_t>(i)];
      if (sum != s.band.data<std::int32_t>()[row * T + i]) return false;
    }
  }
  return true;
}

double tau_error(const Tensor& got, const Tensor& wanted) {
  double worst = 0;
  const auto g = values_of(got), w = values_of(wanted);
  for (std::size_t x = 0; x < g.size(); ++x) {
    if (g[x] == w[x]) continue;
    const double e = std::abs(g[x] - w[x]) / std::max(1.0, std::abs(w[x]));
    worst = e <= worst ? worst : (e == e ? e : std::numeric_limits<double>::infinity());
  }
  return worst;
}

// tau (B, H, T) inside every document.
bool never_falls(const Tensor& tau, const Tensor& starts) {
  const std::int64_t T = tau.size(2), H = tau.size(1);
  const double* values = tau.data<double>();
  for (std::int64_t x = 0; x < tau.numel(); ++x) {
    const std::int64_t i = x % T, b = x / T / H;
    const bool opens = i == 0 || (starts.defined() && starts.data<std::int32_t>()[b * T + i] == i);
    if (!opens && values[x] < values[x - 1]) return false;
  }
  return true;
}

struct SelectionCase {
  SelectArgs how{};
  Tensor scores, starts;
};

// Lengths around the edges of chunks of 512 keys; c % 9 == 0: several steps of chunks; c % 5 == 0: k = window.
SelectionCase draw_selection(Draw& d, std::uint64_t c, const std::string& kind) {
  SelectionCase s;
  ReferenceInput in = draw_input(d, 90, kind);
  in.spec.kind = AttentionKind::sparsek;
  in.T = c % 9 == 0 ? d.integer(1500, 5000) : (c % 3 == 0 ? d.integer(60, 600) : (c % 8 == 1 ? 1023 + c % 4 : in.T));
  if (!in.document_starts.empty()) fill_documents(in, d);
  s.how.B = in.B, s.how.H = in.score_heads, s.how.T = in.T;
  s.how.k = c % 9 == 0 || c % 8 == 1 ? d.integer(1, 700) : in.spec.sparsek.k;
  s.how.pool = c % 4 == 0 ? 0 : d.integer(1, 5);
  s.how.delay = d.chance(0.3) ? 0 : d.integer(1, in.T);
  if (c % 5 == 0) s.how.k = s.how.delay = d.integer(1, 600);
  s.how.slope = c % 11 == 0 ? -0.01 : (c % 13 == 0 ? 0.3 : in.spec.sparsek.slope);
  s.how.temperature = in.spec.sparsek.temperature;
  s.how.thresholds = true;
  std::vector<double> values;
  for (std::int64_t x = 0; x < in.B * in.score_heads; ++x) {
    const auto row = make_scores(kind, in.T, static_cast<std::uint64_t>(d.integer(0, 1 << 30)));
    values.insert(values.end(), row.begin(), row.end());
  }
  if (c % 7 == 0) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity(), kOdd[] = {-kInfinity, kInfinity, -0.0, 0.0};
    for (double& v : values) {
      if (d.chance(0.05)) v = d.chance(0.6) ? std::numeric_limits<double>::quiet_NaN() : kOdd[d.integer(0, 3)];
    }
  }
  s.scores = tensor_of(values, {in.B, in.score_heads, in.T}, c % 2 == 0 ? DType::f32 : DType::f64);
  s.starts = inputs_of(in).document_starts;
  return s;
}

void check_selection(const SelectionCase& s) {
  CAPTURE(s.how.B, s.how.H, s.how.T, s.how.k, s.how.pool, s.how.delay, s.how.slope, s.how.temperature,
          s.starts.defined());
  const DeviceSelection cpu(s.how, s.scores, s.starts), gpu(s.how, on_gpu(s.scores), on_gpu(s.starts));
  CHECK(same_bits(gpu.from, cpu.from));
  CHECK(same_bits(gpu.to, cpu.to));
  CHECK(same_bits(gpu.z, cpu.z));
  CHECK(same_bits(gpu.nan, cpu.nan));
  CHECK(tau_error(gpu.tau, cpu.tau) <= 1e-12);
  CHECK(never_falls(gpu.tau, s.starts));
  CHECK(counts_agree(gpu));
  // Thresholds that differ in rounding make the same bands, also where a score lies exactly at an end of one.
  CHECK(same_bits(gpu.band, cpu.band));
  CHECK(same_bits(gpu.band_from, cpu.band_from));
  CHECK(same_bits(gpu.band_to, cpu.band_to));
}

}  // namespace

TEST_CASE("the GPU selects what the CPU selects", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (std::uint64_t c = 0; c < 330; ++c) {
    Draw d(115, c);
    const std::string kind = kScoreKinds[c % kScoreKinds.size()];
    CAPTURE(c, kind);
    check_selection(draw_selection(d, c, kind));
  }
}

TEST_CASE("the GPU selects what the CPU selects: a few short rows", "[gpu][small]") {
  SIEVE_NEEDS_GPU();
  for (const std::uint64_t c : {1, 2, 3, 4, 5, 7}) {
    Draw d(121, c);
    const std::string kind = kScoreKinds[c % kScoreKinds.size()];
    CAPTURE(c, kind);
    check_selection(draw_selection(d, c, kind));
  }
}

// A base lies in a block's shared memory up to 8,192 scores; larger pools take the walk over rows. What a block has
// without asking, 48 KiB, holds the kernels' static arrays as well.
TEST_CASE("selections whose pool just fits a block's memory and those beyond", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const std::int64_t P : {340, 1000, 1500, 2048, 4096, 8192, 8193, 8800}) {
    for (const std::int64_t parts : {1, 4}) {
      SelectionCase s;
      s.how.B = s.how.H = 1, s.how.T = P + 700;
      s.how.k = P / parts, s.how.pool = parts, s.how.slope = 0.00127, s.how.temperature = 1;
      s.how.thresholds = true;
      s.scores = tensor_of(make_scores("burst", s.how.T, static_cast<std::uint64_t>(P)), {1, 1, s.how.T}, DType::f64);
      check_selection(s);
    }
  }
}

// Bases grow by groups of eight chunks, larger ones by 512 gathered keys at a time: equal scores keep the order of time
// across both, and documents that begin inside a group, at its edge and just behind a chunk's leave nothing behind.
TEST_CASE("bases over several groups of chunks with equal scores and documents", "[gpu]") {
  SIEVE_NEEDS_GPU();
  constexpr std::int64_t T = 17000;
  std::vector<std::int32_t> starts(T);
  for (const std::int32_t begin : {700, 5000, 5001, 8192, 12801}) {
    for (std::int64_t i = begin; i < T; ++i) starts[static_cast<std::size_t>(i)] = begin;
  }
  std::uint64_t c = 0;
  for (const std::string kind : {"integers", "two_values", "quantised", "increasing"}) {
    for (const bool documents : {false, true}) {
      for (const std::int64_t k : {30, 600, 2000}) {
        CAPTURE(kind);
        SelectionCase s;
        s.how.B = s.how.H = 1, s.how.T = T;
        s.how.k = k, s.how.pool = 2, s.how.delay = 100, s.how.temperature = 1, s.how.thresholds = true;
        s.scores = tensor_of(make_scores(kind, T, ++c), {1, 1, T}, DType::f32);
        if (documents) s.starts = from_values<std::int32_t>(starts, {1, T});
        check_selection(s);
      }
    }
  }
}

TEST_CASE("selections of long rows on the GPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const std::string kind : {"normal", "narrow", "quantised", "increasing"}) {
    CAPTURE(kind);
    SelectionCase s;
    s.how.B = 1, s.how.H = 2, s.how.T = 40000;
    s.how.k = s.how.delay = 512, s.how.pool = 4, s.how.temperature = 1;
    s.how.thresholds = true;
    s.scores = tensor_of(make_scores(kind, 2 * s.how.T, 3), {1, 2, s.how.T}, DType::f32);
    check_selection(s);
    s.how.thresholds = false;
    const DeviceSelection cpu(s.how, s.scores, s.starts), gpu(s.how, on_gpu(s.scores), s.starts);
    CHECK(same_bits(gpu.from, cpu.from));
    CHECK(same_bits(gpu.to, cpu.to));
  }
}

namespace {

// The keys of one list, run after run, and where the runs end.
struct ListedKeys {
  std::vector<std::int32_t> keys, ends;
};
ListedKeys list_by_definition(const DeviceSelection& s, std::int64_t row, std::int64_t W, const Interval& queries) {
  const std::int64_t T = s.from.size(2);
  ListedKeys all;
  std::vector<std::int32_t> runs[kRowRuns];
  for (std::int64_t j = 0; j < T; ++j) {
    const std::int64_t x = row * T + j;
    const Interval seen = spans::selected_queries(static_cast<std::int32_t>(j),
                                                  {s.from.data<std::int32_t>()[x], s.to.data<std::int32_t>()[x]}, W);
    if (spans::intersect(seen, queries).empty()) continue;
    const bool whole = seen.begin <= queries.begin && seen.end >= queries.end;
    const bool steady = whole && queries.end - 1 < s.band_from.data<std::int32_t>()[x];
    runs[steady ? kSteadyRows : (whole ? kWholeRows : kPartialRows)].push_back(static_cast<std::int32_t>(j));
  }
  for (const auto& run : runs) {
    all.keys.insert(all.keys.end(), run.begin(), run.end());
    all.ends.push_back(static_cast<std::int32_t>(all.keys.size()));
  }
  return all;
}

// How many lists differ from their definition.
int wrong_lists(const RowLists& lists, const Tensor& keys, const Tensor& ends, const DeviceSelection& s,
                std::int64_t W) {
  const std::int64_t T = s.from.size(2), rows = s.from.numel() / T;
  int wrong = 0;
  for (std::int64_t at = 0; at < rows * lists.lists; ++at) {
    const ListedKeys wanted =
        list_by_definition(s, at / lists.lists, W, spans::tile_queries(at % lists.lists, lists.queries, T));
    const std::int32_t *got = keys.data<std::int32_t>() + at * lists.capacity,
                       *got_ends = ends.data<std::int32_t>() + at * kRowRuns;
    const bool same = std::equal(wanted.ends.begin(), wanted.ends.end(), got_ends) &&
                      std::ssize(wanted.keys) <= lists.capacity &&
                      std::equal(wanted.keys.begin(), wanted.keys.end(), got);
    wrong += !same;
  }
  return wrong;
}

}  // namespace

TEST_CASE("the GPU's row lists hold their keys in three runs", "[gpu]") {
  SIEVE_NEEDS_GPU();
  constexpr std::int64_t kTiles[] = {64, 128, 192};
  for (std::uint64_t c = 0; c < 40; ++c) {
    Draw d(127, c);
    SelectionCase s = draw_selection(d, c, kScoreKinds[c % kScoreKinds.size()]);
    AttentionSpec spec;
    spec.kind = AttentionKind::sparsek;
    spec.window = s.how.delay > 0 ? s.how.delay : d.integer(1, 40);
    spec.sparsek.k = s.how.k;
    const std::int64_t tile = kTiles[c % 3], chunk = tile * d.integer(1, 9);
    CAPTURE(c, s.how.B, s.how.H, s.how.T, s.how.k, spec.window, tile, chunk, s.starts.defined());
    const DeviceSelection cpu(s.how, s.scores, s.starts);
    const Stream stream = gpu_stream();
    const Tensor from = on_gpu(cpu.from), to = on_gpu(cpu.to), band_from = on_gpu(cpu.band_from);
    const PlanOnDevice plan =
        make_device_plan(spec, s.how.B, s.how.T, on_gpu(s.starts), from, to, band_from, stream, tile, chunk);
    CHECK(wrong_lists(plan.view.tiles, on_host(plan.tile_keys), on_host(plan.tile_ends), cpu, spec.window) == 0);
    CHECK(wrong_lists(plan.view.chunks, on_host(plan.chunk_keys), on_host(plan.chunk_ends), cpu, spec.window) == 0);
  }
}

TEST_CASE("the GPU carries score gradients back through prefixes as the CPU does", "[gpu]") {
  SIEVE_NEEDS_GPU();
  for (const std::int64_t T : {1, 31, 32, 4095, 4096, 4097, 12289}) {
    CAPTURE(T);
    Draw d(131, static_cast<std::uint64_t>(T));
    SelectArgs how{};
    how.B = 1, how.H = 3, how.T = T, how.k = 40, how.pool = 4, how.delay = 16, how.temperature = 0.7;
    how.thresholds = true;
    const Tensor scores = tensor_of(make_scores("narrow", 3 * T, 9), {1, 3, T}, DType::f64);
    const DeviceSelection s(how, scores, Tensor());
    std::vector<double> sums[2];
    for (auto& values : sums) {
      for (std::int64_t x = 0; x < 3 * T; ++x) values.push_back(d.uniform() - 0.5);
    }
    const Tensor column = tensor_of(sums[0], {1, 3, T}, DType::f64), row = tensor_of(sums[1], {1, 3, T}, DType::f64);
    const auto back = [&](const Stream& stream) {
      const auto place = [&](const Tensor& t) { return t.to(stream); };
      const Tensor inputs[] = {place(column), place(row), place(s.band), place(s.band_from), place(s.band_to)};
      const Tensor out = empty({1, 3, T}, DType::f64, stream);
      SelectBackwardArgs a{};
      a.column_BHT = inputs[0].data<double>(), a.row_BHT = inputs[1].data<double>();
      a.band_BHT = inputs[2].data<std::int32_t>();
      a.band_from_BHT = inputs[3].data<std::int32_t>(), a.band_to_BHT = inputs[4].data<std::int32_t>();
      a.dscores_BHT = out.raw(), a.dtype = DType::f64;
      a.B = 1, a.H = 3, a.T = T, a.temperature = 0.7;
      launch(stream, a);
      return on_host(out);
    };
    CHECK(tau_error(back(gpu_stream()), back(Stream{})) <= 1e-11);
  }
}
