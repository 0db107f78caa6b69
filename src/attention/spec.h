// What a layer's attention is, as data. docs/attention.md explains each pattern with its equation and source.
// Letters: B batch, T time, H query heads, Hkv key-value heads, Hs score heads (Hkv or 1), D head size.
#pragma once

#include <cstdint>
#include <string_view>

namespace sieve {

enum class AttentionKind { full, sliding_window, sparsek };
enum class GateMode { kv, value, prob, hard };  // where the soft mask m multiplies (docs/attention.md, "Gates")
enum class Candidates { on_exit, at_once };     // a key competes when it leaves the window | from its own position on
enum class PositionRule { absolute, clamp, none };  // rotary positions of selected keys

inline constexpr std::string_view kAttentionKindNames[] = {"full", "sliding_window", "sparsek"};
inline constexpr std::string_view kGateModeNames[] = {"kv", "value", "prob", "hard"};
inline constexpr std::string_view kCandidatesNames[] = {"on_exit", "at_once"};
inline constexpr std::string_view kPositionRuleNames[] = {"absolute", "clamp", "none"};

struct SparsekSpec {
  std::int64_t k = 0;      // selected keys a query, per KV head
  double slope = 0;        // eps: u_j = s_j + eps * j; age penalty per token
  double temperature = 1;  // the operator sees u / temperature
  GateMode gate = GateMode::kv;
  Candidates candidates = Candidates::on_exit;
  PositionRule positions = PositionRule::absolute;
  std::int64_t clamp_distance = 0;  // positions = clamp: distances above this one are seen as this one
  std::int64_t pool = 4;            // thresholds see the top pool*k scores of a prefix; 0 = all (exact)
};

struct AttentionSpec {
  AttentionKind kind = AttentionKind::full;
  std::int64_t window = 0;  // keys of the local window, self included (sliding_window, sparsek)
  std::int64_t sinks = 0;   // first keys of the document that every query sees (sliding_window)
  SparsekSpec sparsek;
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
