// Made-up tasks: every answer can be found by brute force from the tokens alone, rows are the same for everybody, and
// small models learn what their attention can see and nothing else.
#include "train/probe.h"

#include <algorithm>
#include <map>
#include <set>

#include "dist/thread_communicator.h"
#include "support/catch.h"
#include "support/gpu.h"

using namespace sieve;
using sieve::testing::run_ranks;

namespace {

struct Case {
  const char* name;
  ProbeSpec spec;
  ProbeSetting setting;
};

std::vector<Case> cases() {
  using enum ProbeTask;
  return {
      {"selective copy", {.task = selective_copy, .items = 6, .symbols = 5, .hints = true}, {100, 6, {}}},
      {"selective copy of fewer", {.task = selective_copy, .items = 6, .symbols = 5}, {31, 4, {}}},
      {"selective copy, shortest", {.task = selective_copy, .items = 6, .symbols = 5}, {12, 6, {}}},
      {"mqar", {.task = mqar, .items = 8, .symbols = 20, .keys = 30, .marked = false}, {101, 8, {}}},
      {"mqar with hints",
       {.task = mqar, .items = 8, .symbols = 20, .keys = 30, .marked = true, .hints = true},
       {101, 8, {}}},
      {"mqar, noise apart", {.task = mqar, .items = 8, .symbols = 20, .keys = 8, .marked = true}, {32, 8, {}}},
      {"passkey", {.task = passkey, .items = 4, .symbols = 10}, {77, 4, {}}},
      {"passkey, shortest", {.task = passkey, .items = 4, .symbols = 10}, {9, 4, {}}},
      {"passkey at a depth", {.task = passkey, .items = 4, .symbols = 10}, {77, 4, 1.0}},
      {"passkey asked often",
       {.task = passkey, .items = 3, .symbols = 10, .keys = 12, .marked = false, .hints = true},
       {90, 3, {}}},
      {"passkey of one to many",
       {.task = passkey, .items = 3, .symbols = 10, .keys = 12, .marked = false, .vary = true},
       {90, 3, {}}},
      {"passkey of many", {.task = passkey, .items = 3, .symbols = 10, .keys = 12, .marked = false}, {90, 3, {}}},
      {"passkey of two", {.task = passkey, .items = 3, .symbols = 10, .keys = 12, .marked = false}, {14, 3, 0.0}},
      {"long copy", {.task = long_copy, .items = 9, .symbols = 7}, {64, 9, {}}},
      {"long copy in noise of its kind", {.task = long_copy, .items = 9, .symbols = 7, .marked = false}, {18, 9, {}}}};
}

using Answers = std::map<std::int64_t, std::int32_t>;  // place -> answer

// What a reader who knows the definitions answers, from the tokens alone.
Answers solve_selective_copy(const ProbeSpec& s, const std::vector<std::int32_t>& x) {
  std::map<std::int64_t, std::int32_t> of_slot;
  Answers out;
  for (std::size_t t = 0; t < x.size(); ++t) {
    const std::int64_t id = x[t] - s.symbols;
    if (id >= 0 && id < s.items * s.symbols) {
      of_slot[id / s.symbols] = static_cast<std::int32_t>(id % s.symbols);
      if (s.hints) out[static_cast<std::int64_t>(t)] = static_cast<std::int32_t>(id % s.symbols);
    }
    if (id >= s.items * s.symbols) out[static_cast<std::int64_t>(t)] = of_slot.at(id - s.items * s.symbols);
  }
  return out;
}

Answers solve_mqar(const ProbeSpec& s, std::int64_t n, const std::vector<std::int32_t>& x) {
  std::map<std::int32_t, std::int32_t> value;
  for (std::int64_t i = 0; i < n; ++i)
    value[x[static_cast<std::size_t>(2 * i)]] = x[static_cast<std::size_t>(2 * i + 1)];
  Answers out;
  for (std::int64_t i = 0; i < n && s.hints; ++i) out[2 * i + 1] = x[static_cast<std::size_t>(2 * i)];
  // Noise may look like a key anywhere; a question stands at an even place. Which of several is meant, only the targets
  // say.
  for (std::size_t t = static_cast<std::size_t>(2 * n); t < x.size(); t += 2) {
    if (x[t] < s.keys && value.count(x[t])) out[static_cast<std::int64_t>(t)] = value[x[t]];
  }
  return out;
}

Answers turns(const std::vector<std::int32_t>& x, std::int64_t at, std::int64_t from, std::int64_t n) {
  Answers out;
  for (std::int64_t i = 0; i < n; ++i) out[at + i] = x[static_cast<std::size_t>(from + i)];
  return out;
}

Answers solve_passkey(const ProbeSpec& s, std::int64_t n, const std::vector<std::int32_t>& x) {
  const auto say = static_cast<std::int32_t>(s.symbols + 16), ask = say + 1;
  const auto T = static_cast<std::int64_t>(x.size());
  const auto token = [&](std::int64_t t) { return x[static_cast<std::size_t>(t)]; };
  Answers out;
  for (std::int64_t at = 0; at < T; ++at) {
    if (token(at) != ask) continue;
    for (std::int64_t t = 0; t < at; ++t) {
      for (std::int64_t j = 0; j < n && s.hints && token(t) == say; ++j) out[t + 2 + j] = token(t + 1);
      if (token(t) == say && s.marked) out.merge(turns(x, at, t + 1, n));
      if (token(t) == say && !s.marked && token(t + 1) == token(at + 1)) out.merge(turns(x, at + 1, t + 2, n));
    }
  }
  CHECK(std::count(x.begin(), x.end(), ask) == (s.hints ? T / 4 / (n + 1) : 1));
  return out;
}

Answers solve(const Case& c, const std::vector<std::int32_t>& x) {
  const std::int64_t n = c.setting.items;
  switch (c.spec.task) {
    case ProbeTask::selective_copy: return solve_selective_copy(c.spec, x);
    case ProbeTask::mqar: return solve_mqar(c.spec, n, x);
    case ProbeTask::passkey: return solve_passkey(c.spec, n, x);
    case ProbeTask::long_copy: return turns(x, static_cast<std::int64_t>(x.size()) - n, 0, n);
  }
  return {};
}

Answers asked(const ProbeRow& row) {
  Answers out;
  for (std::size_t t = 0; t < row.targets.size(); ++t) {
    if (row.targets[t] >= 0) out[static_cast<std::int64_t>(t)] = row.targets[t];
  }
  return out;
}

LoadedProbe tiny(const std::vector<std::string>& more) {
  std::vector<std::string> words{
      "device.type=cpu",
      "model={arch: gpt2, n_layers: 2, d_model: 32, n_heads: 2}",
      "model.attention.kinds={full: {type: full}, window: {type: sliding_window, window: 4}}",
      "model.attention.pattern=[full]",
      "probe={length: 64, items: 4, symbols: 4, lr: 5e-3, schedule: {warmup: 20}}",
      "probe.eval.examples=64"};
  words.insert(words.end(), more.begin(), more.end());
  return load_probe("", words, 1);
}

}  // namespace

TEST_CASE("probes: every answer is found by brute force from the tokens alone") {
  for (const Case& c : cases()) {
    for (std::int64_t number = 0; number < 50; ++number) {
      INFO(c.name << " row " << number);
      const ProbeRow row = probe_row(c.spec, c.setting, ProbeUse::training, 7, number);
      const Answers solved = solve(c, row.tokens);
      if (c.spec.task == ProbeTask::mqar && !c.spec.marked) {
        CHECK(asked(row).size() == static_cast<std::size_t>(c.setting.items));
        for (const auto& [at, answer] : asked(row)) CHECK((solved.count(at) && solved.at(at) == answer));
      } else {
        CHECK(asked(row) == solved);
      }
      for (const std::int32_t id : row.tokens) REQUIRE((id >= 0 && id < probe_vocab(c.spec)));
      for (const auto& [at, answer] : asked(row)) {
        const std::int64_t source = row.sources[static_cast<std::size_t>(at)];
        REQUIRE((source >= 0 && source <= at));
        const std::int32_t told = row.tokens[static_cast<std::size_t>(source)];
        const bool slot = c.spec.task == ProbeTask::selective_copy;
        CHECK((slot ? (told - c.spec.symbols) % c.spec.symbols : told) == answer);
      }
    }
  }
}

TEST_CASE("probes: a row is a function of its number and the seed") {
  for (const Case& c : cases()) {
    INFO(c.name);
    const auto tokens = [&](ProbeUse use, std::uint64_t seed, std::int64_t row) {
      return probe_row(c.spec, c.setting, use, seed, row).tokens;
    };
    const auto first = tokens(ProbeUse::training, 7, 3);
    CHECK(first == tokens(ProbeUse::training, 7, 3));
    CHECK(first != tokens(ProbeUse::training, 8, 3));
    CHECK(first != tokens(ProbeUse::training, 7, 4));
    CHECK(first != tokens(ProbeUse::evaluation, 7, 3));
    // However rows are dealt into micro-batches, they are the same.
    const ProbeSet set(c.spec, c.setting, 7);
    const Batch whole = set.micro_batch(0, 4), half = set.micro_batch(1, 2);
    const std::int64_t T = c.setting.length;
    CHECK(std::equal(half.tokens.data<std::int32_t>(), half.tokens.data<std::int32_t>() + 2 * T,
                     whole.tokens.data<std::int32_t>() + 2 * T));
    CHECK(std::equal(first.begin(), first.end(), whole.tokens.data<std::int32_t>() + 3 * T));
    const std::int32_t* targets = whole.targets.data<std::int32_t>();
    CHECK(whole.target_count == std::count_if(targets, targets + 4 * T, [](std::int32_t t) { return t >= 0; }));
  }
}

TEST_CASE("probes: rows of varied numbers hold from one item to all in training and all in evaluation") {
  const ProbeSpec spec{.task = ProbeTask::mqar, .items = 8, .symbols = 20, .keys = 30, .vary = true};
  std::map<std::size_t, int> seen;
  for (std::int64_t r = 0; r < 200; ++r) {
    ++seen[asked(probe_row(spec, {64, 8, {}}, ProbeUse::training, 1, r)).size()];
    CHECK(asked(probe_row(spec, {64, 8, {}}, ProbeUse::evaluation, 1, r)).size() == 8);
  }
  CHECK(seen.size() == 8);
  CHECK((seen.begin()->first == 1 && seen.rbegin()->first == 8));
  CHECK(seen[1] > seen[8]);
}

TEST_CASE("probes: the passkey stands at the depth that is asked for") {
  for (const bool marked : {true, false}) {
    const ProbeSpec spec{.task = ProbeTask::passkey, .items = 3, .symbols = 10, .keys = 8, .marked = marked};
    const std::int64_t T = 100;
    for (const double depth : {0.0, 0.25, 0.5, 1.0}) {
      const ProbeRow row = probe_row(spec, {T, 3, depth}, ProbeUse::evaluation, 1, 0);
      const auto at = std::find_if(row.targets.begin(), row.targets.end(), [](auto t) { return t >= 0; });
      const std::int64_t source = row.sources[static_cast<std::size_t>(at - row.targets.begin())];
      const double room = static_cast<double>(T - 3 - 4);  // question; sentence
      INFO("depth " << depth << " marked " << marked << " source " << source);
      CHECK(std::abs(static_cast<double>(source) - depth * room) <= (marked ? 2 : 10));
    }
  }
}

TEST_CASE("probes: gaps of mqar are short and long ones, of distinct keys") {
  const ProbeSpec spec{.task = ProbeTask::mqar, .items = 16, .symbols = 64, .keys = 64, .marked = false};
  std::int64_t near = 0, far = 0;
  for (std::int64_t r = 0; r < 50; ++r) {
    const ProbeRow row = probe_row(spec, {512, 16, {}}, ProbeUse::training, 1, r);
    std::set<std::int32_t> keys;
    for (std::size_t i = 0; i < 16; ++i) keys.insert(row.tokens[2 * i]);
    CHECK(keys.size() == 16);
    for (std::size_t t = 0; t < 512; ++t) {
      if (row.targets[t] >= 0) ++(t < 32 + 60 ? near : far);
    }
  }
  CHECK(near > 200);  // an eighth of the room holds more than an eighth of the 800 questions
  CHECK(far > 200);
}

TEST_CASE("probes: what is measured agrees with the logits, and does not depend on the ranks") {
  const LoadedProbe loaded = tiny({"probe.steps=3", "probe.schedule.warmup=0", "probe.batch=8", "probe.micro_batch=2",
                                   "probe.eval.lengths=[64]", "probe.eval.items=[2,4]", "probe.eval.examples=13"});
  std::vector<ProbeOutcome> outcomes(3);
  for (const int ranks : {1, 2}) {
    run_ranks(ranks, [&](Communicator& comm) {
      const ProbeOutcome o = run_probe(loaded, comm);
      outcomes[static_cast<std::size_t>(ranks - 1 + comm.rank())] = o;
    });
  }
  REQUIRE(outcomes[0].results.size() == 2);
  for (const ProbeOutcome& o : outcomes) {
    CHECK(o.curve.back().loss == outcomes[0].curve.back().loss);
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(o.results[i].tokens.right == outcomes[0].results[i].tokens.right);
      CHECK(o.results[i].tokens.asked == 13 * (i == 0 ? 2 : 4));
      CHECK(o.results[i].rows.asked == 13);
    }
  }
  const Decoder model(loaded.config.model, {.compute = DType::f32, .seed = 1, .recompute = {}});
  SelfCommunicator alone;
  const ProbeResult measured = measure_probe(model, loaded.config.probe, {64, 4, {}}, alone);
  std::int64_t right = 0;
  for (std::int64_t r = 0; r < 13; ++r) {
    const ProbeRow row = probe_row(loaded.config.probe.spec(), {64, 4, {}}, ProbeUse::evaluation, 1, r);
    const Tensor logits = model.logits(from_values<std::int32_t>(row.tokens, {1, 64}));
    const std::int64_t V = logits.size(2);
    for (std::int64_t t = 0; t < 64; ++t) {
      const float* at = logits.data<float>() + t * V;
      if (row.targets[static_cast<std::size_t>(t)] >= 0)
        right += std::max_element(at, at + V) - at == row.targets[static_cast<std::size_t>(t)];
    }
  }
  CHECK(measured.tokens.right == right);
}

TEST_CASE("probes: full attention learns selective copy and a window does not") {
  SelfCommunicator comm;
  const ProbeOutcome full = run_probe(tiny({"probe.steps=400"}), comm);
  CHECK(full.results[0].tokens.accuracy() > 0.95);
  const ProbeOutcome window = run_probe(tiny({"probe.steps=400", "model.attention.pattern=[window]"}), comm);
  CHECK(window.results[0].tokens.accuracy() < 0.45);  // chance 0.25, and the last of four stands near now and then
}

TEST_CASE("GPU: a probe learns there too", "[gpu]") {
  SIEVE_NEEDS_GPU();
  SelfCommunicator comm;
  for (const char* precision : {"fp32", "bf16"}) {
    const ProbeOutcome o =
        run_probe(tiny({"device.type=cuda", cat("device.precision=", precision), "probe.steps=400"}), comm);
    INFO(precision);
    CHECK(o.results[0].tokens.accuracy() > 0.95);
  }
}
