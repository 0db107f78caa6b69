// What a layer's attention is, as data. docs/attention.md explains each pattern with its equation and source.
// Letters: B batch, T time, H query heads, Hkv key-value heads, Hs score heads (Hkv or 1), D head size.
#pragma once

#include <cstdint>
#include <string_view>

namespace sieve {

enum class AttentionKind {
  full,
  sliding_window,
  sparsek,
  random_rows,  // a config's word for sparsek with SparsekSpec::random_scores
  strided,      // from here: pairs that a pattern shows (kernels/pattern.h)
  fixed,
  longformer,
  bigbird,
  hash,
  top_k,
  moba,
  dsa,
  nsa,  // three softmaxes and gates
  linear,
  gla
};
enum class GateMode { kv, value, prob, hard };  // where the soft mask m multiplies (docs/attention.md, "Gates")
enum class Candidates { on_exit, at_once };     // a key competes when it leaves the window | from its own position on
enum class PositionRule { absolute, clamp, none };  // rotary positions of selected keys
enum class PatternPart { merged, local, columns };  // strided, fixed: both sets of keys in one softmax, or one of them

inline constexpr std::string_view kAttentionKindNames[] = {
    "full", "sliding_window", "sparsek", "random_rows", "strided", "fixed",  "longformer", "bigbird",
    "hash", "top_k",          "moba",    "dsa",         "nsa",     "linear", "gla"};
// Kinds that show a query those keys that a PairPattern does.
constexpr bool shows_pairs(AttentionKind kind) { return kind >= AttentionKind::strided && kind <= AttentionKind::dsa; }
inline constexpr std::string_view kGateModeNames[] = {"kv", "value", "prob", "hard"};
inline constexpr std::string_view kCandidatesNames[] = {"on_exit", "at_once"};
inline constexpr std::string_view kPositionRuleNames[] = {"absolute", "clamp", "none"};
inline constexpr std::string_view kPatternPartNames[] = {"merged", "local", "columns"};

struct SparsekSpec {
  std::int64_t k = 0;      // selected keys a query, per KV head
  double slope = 0;        // eps: u_j = s_j + eps * j; age penalty per token
  double temperature = 1;  // the operator sees u / temperature
  GateMode gate = GateMode::kv;
  Candidates candidates = Candidates::on_exit;
  PositionRule positions = PositionRule::absolute;
  std::int64_t clamp_distance = 0;  // positions = clamp: distances above this one are seen as this one
  std::int64_t pool = 4;            // thresholds see the top pool*k scores of a prefix; 0 = all (exact)
  bool random_scores = false;       // no scorer: counter-based random numbers, one a position, of PatternSpec::seed
  bool linear = false;              // keys that are neither in the window nor selected go into a linear state
};

// The numbers of the other sparse kinds; docs/attention.md has each kind's equation and source. Zero where a kind has
// no use for it.
struct PatternSpec {
  std::int64_t k = 0;                      // top_k, dsa: chosen keys a query
  std::int64_t stride = 0, summary = 0;    // strided: l; fixed: l and the c last positions of each block
  PatternPart part = PatternPart::merged;  // strided, fixed
  std::int64_t dilation = 1, globals = 0;  // longformer (with AttentionSpec::window keys)
  std::int64_t block = 0;                  // bigbird, moba, nsa: keys of a block
  std::int64_t global_blocks = 0, window_blocks = 0, random_blocks = 0;  // bigbird
  std::int64_t blocks = 0;                               // moba, nsa: chosen blocks a query, its own included
  std::int64_t buckets = 0;                              // hash
  std::int64_t compress_block = 0, compress_stride = 0;  // nsa
  std::int64_t index_heads = 0, index_dim = 0;           // dsa
  std::uint64_t seed = 0;  // of random blocks, random scores and hash directions; differs by layer
};

struct AttentionSpec {
  AttentionKind kind = AttentionKind::full;
  std::int64_t window = 0;  // keys of the local window, self included (sliding_window, sparsek, longformer, nsa)
  std::int64_t sinks = 0;   // first keys of the document that every query sees (sliding_window)
  SparsekSpec sparsek;
  PatternSpec pattern;
  std::int64_t n_heads = 0, n_kv_heads = 0, head_dim = 0;

  std::int64_t group() const { return n_heads / n_kv_heads; }
  std::int64_t qkv_features() const { return (n_heads + 2 * n_kv_heads) * head_dim; }
};

// Rotary embedding, rotate-half layout (Su et al. 2021, arXiv 2104.09864). rotary_dims = 0: no rotation (learned
// positions).
struct RopeSpec {
  std::int64_t rotary_dims = 0;
  double theta = 10000;
};

}  // namespace sieve
