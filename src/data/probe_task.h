// Made-up tasks that ask one question of an attention: what does it still know of a token that stood far back? Every
// row is a pure function of (task, seed, number of the row), so that any number of ranks sees the same rows; the random
// numbers are those of core/rng.h. docs/probes.md has the layout of each task's rows.
// Letters: T tokens of a row, n items, V vocabulary.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "data/loader.h"

namespace sieve {

enum class ProbeTask { selective_copy, mqar, passkey, long_copy };
inline constexpr std::string_view kProbeTaskNames[] = {"selective_copy", "mqar", "passkey", "long_copy"};

struct ProbeSpec {
  ProbeTask task = ProbeTask::selective_copy;
  std::int64_t items = 16;    // the most to remember: marked tokens, key-value pairs, tokens of the key or of the block
  std::int64_t symbols = 16;  // different answers
  std::int64_t keys = 0;      // different keys of mqar, names of an unmarked passkey
  bool marked = true;         // what will be asked for can be told from the rest where it stands
  // Training rows ask for more than is measured. selective_copy: a marked token for its own symbol; mqar: a value for
  // its key; an unmarked passkey: a digit for its sentence's name, and several questions at the end.
  bool hints = false;
  bool vary = false;  // a training row holds from one item (unmarked passkey: sentence) to all of them
};

// What a row is made for. depth: of the passkey's sentence, 0 the row's beginning, 1 its end; absent: random.
struct ProbeSetting {
  std::int64_t length = 512, items = 16;
  std::optional<double> depth;
};

std::int64_t probe_vocab(const ProbeSpec& spec);
// The shortest row that holds `items` of them.
std::int64_t shortest_probe(const ProbeSpec& spec, std::int64_t items);

struct ProbeRow {
  std::vector<std::int32_t> tokens;   // T
  std::vector<std::int32_t> targets;  // the answer where one is asked for, else -1
  std::vector<std::int64_t> sources;  // where the token stands that gives the answer, else -1
};

// Row `row` of the endless series for training, or for evaluation: no row is in both but by chance.
enum class ProbeUse { training, evaluation };
ProbeRow probe_row(const ProbeSpec& spec, const ProbeSetting& setting, ProbeUse use, std::uint64_t seed,
                   std::int64_t row);

// The training rows as micro-batches: rows of micro-batch m are mB .. mB + B - 1.
class ProbeSet final : public BatchSet {
 public:
  ProbeSet(const ProbeSpec& spec, const ProbeSetting& setting, std::uint64_t seed)
      : spec_(spec), setting_(setting), seed_(seed) {}
  Batch micro_batch(std::int64_t index, std::int64_t rows) const override;

 private:
  ProbeSpec spec_;
  ProbeSetting setting_;
  std::uint64_t seed_;
};

}  // namespace sieve
