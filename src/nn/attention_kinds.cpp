// One attention recipe of the YAML: its keys, and which of them each type wants.
#include <algorithm>
#include <array>

#include "core/error.h"
#include "nn/model_config.h"

namespace sieve {

void AttentionKindConfig::fields(FieldVisitor& v) {
  v.choice({"type", "which keys a query may see"}, kAttentionKindNames, type);
  v.integer(
      {.name = "k", .doc = "selected key-value pairs a query, per head (sparsek, random_rows, top_k, dsa)", .min = 0},
      k);
  v.integer({.name = "window",
             .doc = "keys of the local window, self included (sliding_window, sparsek, random_rows, longformer, nsa; 1 "
                    "= self only)",
             .min = 0},
            window);
  v.integer({.name = "sinks", .doc = "first keys of the document that every query sees (sliding_window)", .min = 0},
            sinks);
  v.choice({"gate",
            "where the soft mask multiplies: keys and values, values, probabilities, or nowhere (hard, "
            "straight-through gradient)"},
           kGateModeNames, gate);
  v.group({"score", "the scoring network (sparsek)"}, score);
  v.choice({"candidates", "a key competes when it leaves the window (on_exit) or from its own position on (at_once)"},
           kCandidatesNames, candidates);
  v.choice(
      {"positions", "rotary positions of selected keys: as they are, one far distance (clamp), or unrotated (none)"},
      kPositionRuleNames, positions);
  v.integer(
      {.name = "clamp_distance", .doc = "positions: clamp sees larger distances as this one; auto = window", .min = 1},
      clamp_distance);
  v.integer({.name = "pool",
             .doc = "thresholds see the best pool * k scores of a prefix; exact = all of them",
             .min = 2,
             .none = "exact"},
            pool);
  v.boolean({"linear", "keys that are neither in the window nor selected go into a linear state (sparsek)"}, linear);
  v.integer({.name = "seed", .doc = "seed of the random numbers (random_rows); auto = run.seed", .min = 0}, seed);
  PatternSpec& p = pattern;
  const auto count = [&v](std::string_view name, std::string_view doc, std::int64_t& value) {
    v.integer({.name = name, .doc = doc, .min = 0}, value);
  };
  count("stride", "distance between the strided keys (strided), or length of a block (fixed)", p.stride);
  count("summary", "last keys of each block that every later query sees (fixed)", p.summary);
  v.choice({"part", "which of its two sets of keys a layer shows: both in one softmax, or one (strided, fixed)"},
           kPatternPartNames, p.part);
  v.integer({.name = "dilation", .doc = "distance between the keys of the window (longformer)", .min = 1}, p.dilation);
  count("globals", "first keys of the document that every query sees (longformer)", p.globals);
  count("block", "keys of a block (bigbird, moba, nsa)", p.block);
  count("global_blocks", "first blocks of the document that every query sees (bigbird)", p.global_blocks);
  count("window_blocks", "blocks of the local window, the query's own included (bigbird)", p.window_blocks);
  count("random_blocks", "random earlier blocks a block of queries (bigbird)", p.random_blocks);
  count("blocks", "chosen blocks a query, its own included (moba, nsa)", p.blocks);
  count("buckets", "hash buckets, an even number (hash)", p.buckets);
  count("compress_block", "keys that one compressed key stands for (nsa)", p.compress_block);
  count("compress_stride", "keys from one compressed key to the next (nsa)", p.compress_stride);
  count("index_heads", "heads of the token indexer (dsa)", p.index_heads);
  count("index_dim", "features of an index head (dsa)", p.index_dim);
}

namespace {

// A whole number of a kind, by its key.
struct Count {
  std::string_view key;
  std::int64_t AttentionKindConfig::*own = nullptr;
  std::int64_t PatternSpec::*pattern = nullptr;
  std::int64_t absent = 0;  // what it is where nobody gave it

  std::int64_t of(const AttentionKindConfig& kind) const { return own ? kind.*own : kind.pattern.*pattern; }
};

constexpr Count kCounts[] = {
    {"k", &AttentionKindConfig::k},
    {"window", &AttentionKindConfig::window},
    {"sinks", &AttentionKindConfig::sinks},
    {"stride", nullptr, &PatternSpec::stride},
    {"summary", nullptr, &PatternSpec::summary},
    {"dilation", nullptr, &PatternSpec::dilation, 1},
    {"globals", nullptr, &PatternSpec::globals},
    {"block", nullptr, &PatternSpec::block},
    {"global_blocks", nullptr, &PatternSpec::global_blocks},
    {"window_blocks", nullptr, &PatternSpec::window_blocks},
    {"random_blocks", nullptr, &PatternSpec::random_blocks},
    {"blocks", nullptr, &PatternSpec::blocks},
    {"buckets", nullptr, &PatternSpec::buckets},
    {"compress_block", nullptr, &PatternSpec::compress_block},
    {"compress_stride", nullptr, &PatternSpec::compress_stride},
    {"index_heads", nullptr, &PatternSpec::index_heads},
    {"index_dim", nullptr, &PatternSpec::index_dim},
};

struct KeysOfKind {
  AttentionKind type;
  std::string_view wanted;   // must be at least 1
  std::string_view allowed;  // may be given
};

constexpr KeysOfKind kKeys[] = {
    {AttentionKind::full, "", ""},
    {AttentionKind::sliding_window, "window", "sinks"},
    {AttentionKind::sparsek, "k window", ""},
    {AttentionKind::random_rows, "k window", ""},
    {AttentionKind::strided, "stride", ""},
    {AttentionKind::fixed, "stride summary", ""},
    {AttentionKind::longformer, "window", "dilation globals"},
    {AttentionKind::bigbird, "block window_blocks", "global_blocks random_blocks"},
    {AttentionKind::hash, "buckets", ""},
    {AttentionKind::top_k, "k", ""},
    {AttentionKind::moba, "block blocks", ""},
    {AttentionKind::dsa, "k index_heads index_dim", ""},
    {AttentionKind::nsa, "window block blocks compress_block compress_stride", ""},
    {AttentionKind::linear, "", ""},
    {AttentionKind::gla, "", ""},
};
static_assert(std::size(kKeys) == std::size(kAttentionKindNames));

bool lists(std::string_view keys, std::string_view key) {
  for (std::size_t at = 0; at < keys.size();) {
    const std::size_t end = std::min(keys.size(), keys.find(' ', at));
    if (keys.substr(at, end - at) == key) return true;
    at = end + 1;
  }
  return false;
}

void check_relations(const AttentionKindConfig& kind, std::int64_t head_dim, const KindReport& report) {
  const PatternSpec& p = kind.pattern;
  if (kind.type == AttentionKind::fixed && p.summary > p.stride)
    report("summary", cat(p.summary, " is more than a block of stride ", p.stride));
  if (kind.type == AttentionKind::hash && p.buckets % 2 != 0)
    report("buckets", cat(p.buckets, " must be even: a direction and its opposite are two buckets"));
  if (kind.type == AttentionKind::nsa && p.compress_stride > 0) {
    if (p.compress_block % p.compress_stride != 0 || p.block % p.compress_stride != 0)
      report("compress_stride",
             cat(p.compress_stride, " must divide compress_block ", p.compress_block, " and block ", p.block));
  }
  if (kind.linear && kind.type != AttentionKind::sparsek) report("linear", "only type sparsek has a linear state");
  if (kind.type == AttentionKind::dsa && p.index_dim > 1024)
    report("index_dim", cat(p.index_dim, " is more than 1024; heads of this model have ", head_dim, " features"));
}

}  // namespace

void check_kind(const AttentionKindConfig& kind, std::int64_t seq_len, std::int64_t head_dim,
                const KindReport& report) {
  const KeysOfKind& keys = kKeys[static_cast<std::size_t>(kind.type)];
  const std::string_view type = kAttentionKindNames[static_cast<std::size_t>(kind.type)];
  for (const Count& count : kCounts) {
    const std::int64_t value = count.of(kind);
    const std::string key(count.key);
    if (lists(keys.wanted, count.key)) {
      if (value < 1)
        report(key, cat("must be at least 1 for type ", type, count.key == "window" ? " (1 = self only)" : ""));
    } else if (!lists(keys.allowed, count.key) && value != count.absent) {
      report(key, cat("type ", type, " has no ", key));
      continue;
    }
    if (value > seq_len && count.key != "buckets" && count.key != "index_dim")
      report(key, cat(value, " is larger than the context, data.seq_len = ", seq_len));
  }
  check_relations(kind, head_dim, report);
}

}  // namespace sieve
