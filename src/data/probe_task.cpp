#include "data/probe_task.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "core/rng.h"

namespace sieve {
namespace {

constexpr std::int64_t kNoise = 16;  // tokens that only fill
constexpr double kGapPower = 0.01;   // of the power law of mqar's gaps
constexpr std::int64_t kMostQuestions = 16;
constexpr std::int64_t kEvaluation = 1;  // keeps its random streams apart

// From 1 to `most`, as often from 1 to 2 as from 2 to 4, and so on.
std::int64_t log_uniform(const Philox& random, std::int64_t most) {
  constexpr std::uint64_t kOwn = ~std::uint64_t{0};  // a counter that no row reaches
  const double drawn = std::exp(random.uniform(kOwn) * std::log(static_cast<double>(most + 1)));
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(drawn), 1, most);
}

// A row in the making. Random number i of purpose p is counter p T + i: purposes never share one.
struct Draft {
  const ProbeSpec& spec;
  const ProbeSetting& setting;
  Philox random;
  ProbeRow row;
  std::int64_t T, n;

  Draft(const ProbeSpec& s, const ProbeSetting& g, const Philox& r)
      : spec(s), setting(g), random(r), T(g.length), n(g.items) {
    row.tokens.assign(static_cast<std::size_t>(T), 0);
    row.targets.assign(static_cast<std::size_t>(T), -1);
    row.sources.assign(static_cast<std::size_t>(T), -1);
  }
  std::int64_t pick(std::int64_t purpose, std::int64_t i, std::int64_t of) const {
    return static_cast<std::int64_t>(random.bits64(static_cast<std::uint64_t>(purpose * T + i)) %
                                     static_cast<std::uint64_t>(of));
  }
  std::int32_t& token(std::int64_t t) { return row.tokens[static_cast<std::size_t>(t)]; }
  void put(std::int64_t t, std::int64_t id) { token(t) = static_cast<std::int32_t>(id); }
  // At t the answer is `id`, which the token at `source` tells.
  void ask(std::int64_t t, std::int64_t id, std::int64_t source) {
    row.targets[static_cast<std::size_t>(t)] = static_cast<std::int32_t>(id);
    row.sources[static_cast<std::size_t>(t)] = source;
  }
  // Tokens first .. first + of - 1 at random, from `begin` to `end`.
  void fill(std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t of) {
    for (std::int64_t t = begin; t < end; ++t) put(t, first + pick(0, t, of));
  }
  // The n answers that follow one another at [from, from + n) are asked for one after the other, each token of the
  // answer given before the next is asked for: the first at `at`.
  void ask_in_turn(std::int64_t at, std::int64_t from) {
    for (std::int64_t i = 0; i < n; ++i) {
      if (i > 0) put(at + i, token(from + i - 1));
      ask(at + i, token(from + i), from + i);
    }
  }
};

// [noise with a marked token in each of n equal parts] [a query for each slot]. Ids: symbols and noise alike, marked
// tokens (slot, symbol), queries (slot).
void selective_copy(Draft& d, bool hints) {
  const std::int64_t n = d.n, S = d.spec.symbols, body = d.T - n, segment = body / n;
  const std::int64_t queries = S + d.spec.items * S;
  d.fill(0, body, 0, S);
  std::vector<std::int64_t> slots(static_cast<std::size_t>(n));
  std::iota(slots.begin(), slots.end(), 0);
  for (std::int64_t m = 0; m < n; ++m) {
    std::swap(slots[static_cast<std::size_t>(m)], slots[static_cast<std::size_t>(m + d.pick(3, m, n - m))]);
    const std::int64_t slot = slots[static_cast<std::size_t>(m)], symbol = d.pick(2, m, S);
    const std::int64_t at = m * segment + d.pick(1, m, segment);
    d.put(at, S + slot * S + symbol);
    if (hints) d.ask(at, symbol, at);
    d.put(body + slot, queries + slot);
    d.ask(body + slot, symbol, at);
  }
}

// The n places of [0, room) that mqar asks at, in the order of their pairs: drawn without replacement with weights
// (g + 1)^(a - 1), as the largest of log weight + Gumbel noise.
std::vector<std::int64_t> gaps(const Draft& d, std::int64_t room) {
  std::vector<std::pair<double, std::int64_t>> drawn(static_cast<std::size_t>(room));
  for (std::int64_t g = 0; g < room; ++g) {
    const double uniform = (static_cast<double>(d.pick(3, g, std::int64_t{1} << 53)) + 0.5) * 0x1p-53;
    drawn[static_cast<std::size_t>(g)] = {
        (1 - kGapPower) * std::log(static_cast<double>(g + 1)) + std::log(-std::log(uniform)), g};
  }
  std::partial_sort(drawn.begin(), drawn.begin() + d.n, drawn.end());
  std::vector<std::int64_t> out;
  for (std::int64_t i = 0; i < d.n; ++i) out.push_back(drawn[static_cast<std::size_t>(i)].second);
  return out;
}

// [key value] n times, then every key once more at an even distance from the pairs, noise between. Ids: keys, values,
// noise.
void mqar(Draft& d, bool hints) {
  const std::int64_t n = d.n, K = d.spec.keys, S = d.spec.symbols;
  if (d.spec.marked) d.fill(2 * n, d.T, K + S, kNoise);
  else d.fill(2 * n, d.T, 0, K + S);
  std::vector<std::int64_t> keys(static_cast<std::size_t>(K));
  std::iota(keys.begin(), keys.end(), 0);
  const std::vector<std::int64_t> places = gaps(d, (d.T - 2 * n) / 2);
  for (std::int64_t i = 0; i < n; ++i) {
    std::swap(keys[static_cast<std::size_t>(i)], keys[static_cast<std::size_t>(i + d.pick(1, i, K - i))]);
    const std::int64_t key = keys[static_cast<std::size_t>(i)], value = K + d.pick(2, i, S);
    const std::int64_t at = 2 * n + 2 * places[static_cast<std::size_t>(i)];
    d.put(2 * i, key);
    d.put(2 * i + 1, value);
    d.put(at, key);
    d.ask(at, value, 2 * i + 1);
    if (hints) d.ask(2 * i + 1, key, 2 * i);
  }
}

// Which of `places` question `q` is about.
std::int64_t at_depth(const Draft& d, std::int64_t q, std::int64_t places) {
  if (!d.setting.depth) return d.pick(3, q, places);
  return std::llround(*d.setting.depth * static_cast<double>(places - 1));
}

// Ids of the passkey: digits, noise, the word before a sentence, the word before the question, names.
struct PasskeyIds {
  std::int64_t noise, say, ask, names;
  explicit PasskeyIds(const ProbeSpec& spec) : noise(spec.symbols), say(noise + kNoise), ask(say + 1), names(ask + 1) {}
};

// [noise] [say digits] [noise] [ask, then the digits in turn]
void marked_passkey(Draft& d) {
  const PasskeyIds ids(d.spec);
  const std::int64_t n = d.n, body = d.T - n, begin = at_depth(d, 0, body - n);
  d.fill(0, body, ids.noise, kNoise);
  d.put(begin, ids.say);
  for (std::int64_t i = 0; i < n; ++i) d.put(begin + 1 + i, d.pick(1, i, d.spec.symbols));
  d.put(body, ids.ask);
  d.ask_in_turn(body, begin + 1);
}

// Questions of an unmarked passkey's training row with hints: a row that asks once teaches little.
std::int64_t questions(const Draft& d, bool hints) {
  return hints ? std::clamp<std::int64_t>(d.T / 4 / (d.n + 1), 1, kMostQuestions) : 1;
}

// [say name digits] as often as there is room and are names, evenly spread, then [ask name, then its digits in turn],
// once or with hints several times.
void unmarked_passkey(Draft& d, bool hints, bool vary) {
  const PasskeyIds ids(d.spec);
  const std::int64_t n = d.n, K = d.spec.keys, asks = questions(d, hints), body = d.T - asks * (n + 1);
  const std::int64_t most = std::min(K, body / (n + 2)), count = vary ? log_uniform(d.random, most) : most;
  d.fill(0, body, ids.noise, kNoise);
  std::vector<std::int64_t> names(static_cast<std::size_t>(K)), begins;
  std::iota(names.begin(), names.end(), 0);
  for (std::int64_t i = 0; i < count; ++i) {
    std::swap(names[static_cast<std::size_t>(i)], names[static_cast<std::size_t>(i + d.pick(1, i, K - i))]);
    begins.push_back(i * (body - n - 2) / std::max<std::int64_t>(1, count - 1));
    d.put(begins.back(), ids.say);
    d.put(begins.back() + 1, ids.names + names[static_cast<std::size_t>(i)]);
    for (std::int64_t j = 0; j < n; ++j) d.put(begins.back() + 2 + j, d.pick(2, i * n + j, d.spec.symbols));
    for (std::int64_t j = 0; hints && j < n; ++j)
      d.ask(begins.back() + 2 + j, d.token(begins.back() + 1), begins.back() + 1);
  }
  for (std::int64_t q = 0; q < asks; ++q) {
    const std::int64_t begin = begins[static_cast<std::size_t>(at_depth(d, q, count))], at = body + q * (n + 1);
    d.put(at, ids.ask);
    d.put(at + 1, d.token(begin + 1));
    d.ask_in_turn(at + 1, begin + 2);
  }
}

// [block] [noise] [again, then the block in turn]. Ids: symbols, noise, again.
void long_copy(Draft& d) {
  const std::int64_t n = d.n, S = d.spec.symbols;
  for (std::int64_t i = 0; i < n; ++i) d.put(i, d.pick(1, i, S));
  d.fill(n, d.T - n, d.spec.marked ? S : 0, d.spec.marked ? kNoise : S);
  d.put(d.T - n, S + kNoise);
  d.ask_in_turn(d.T - n, 0);
}

}  // namespace

std::int64_t probe_vocab(const ProbeSpec& s) {
  switch (s.task) {
    case ProbeTask::selective_copy: return s.symbols + s.items * s.symbols + s.items;
    case ProbeTask::mqar: return s.keys + s.symbols + (s.marked ? kNoise : 0);
    case ProbeTask::passkey: return PasskeyIds(s).names + (s.marked ? 0 : s.keys);
    case ProbeTask::long_copy: return s.symbols + kNoise + 1;
  }
  fail(Exit::internal, "probe", "unknown task");
}

std::int64_t shortest_probe(const ProbeSpec& s, std::int64_t n) {
  switch (s.task) {
    case ProbeTask::selective_copy: return 2 * n;
    case ProbeTask::mqar: return 4 * n;
    case ProbeTask::passkey:
      return s.marked ? 2 * n + 1 : 2 * (n + 2) + n + 1;  // unmarked: of two sentences one is meant
    case ProbeTask::long_copy: return 2 * n;
  }
  fail(Exit::internal, "probe", "unknown task");
}

ProbeRow probe_row(const ProbeSpec& spec, const ProbeSetting& setting, ProbeUse use, std::uint64_t seed,
                   std::int64_t row) {
  require(setting.items >= 1 && setting.length >= shortest_probe(spec, setting.items), "probe", setting.items,
          " items do not fit a row of ", setting.length);
  const std::uint64_t stream = use == ProbeUse::training
                                   ? stream_of(row)
                                   : stream_of(row, kEvaluation, setting.length, setting.items,
                                               setting.depth ? std::llround(*setting.depth * 1e6) : -1);
  const Philox random{seed, stream};
  const bool vary = spec.vary && use == ProbeUse::training;
  const bool sentences = spec.task == ProbeTask::passkey && !spec.marked;  // vary in number, not the digits of a key
  ProbeSetting own = setting;
  if (vary && !sentences) own.items = log_uniform(random, own.items);
  Draft draft(spec, own, random);
  const bool hints = spec.hints && use == ProbeUse::training;
  switch (spec.task) {
    case ProbeTask::selective_copy: selective_copy(draft, hints); break;
    case ProbeTask::mqar: mqar(draft, hints); break;
    case ProbeTask::passkey: spec.marked ? marked_passkey(draft) : unmarked_passkey(draft, hints, vary); break;
    case ProbeTask::long_copy: long_copy(draft); break;
  }
  return std::move(draft.row);
}

Batch ProbeSet::micro_batch(std::int64_t index, std::int64_t rows) const {
  Batch batch = empty_batch(index, rows, setting_.length, false);
  for (std::int64_t r = 0; r < rows; ++r) {
    const ProbeRow row = probe_row(spec_, setting_, ProbeUse::training, seed_, index * rows + r);
    std::copy(row.tokens.begin(), row.tokens.end(), batch.tokens.data<std::int32_t>() + r * setting_.length);
    std::copy(row.targets.begin(), row.targets.end(), batch.targets.data<std::int32_t>() + r * setting_.length);
    batch.target_count += std::count_if(row.targets.begin(), row.targets.end(), [](std::int32_t t) { return t >= 0; });
  }
  return batch;
}

}  // namespace sieve
