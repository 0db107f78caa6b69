// What a model is, as the user writes it (`model:` in YAML). ModelConfig::resolve() fills every `auto`, so that a
// checkpoint stores plain numbers; checks that need no data live here, each naming its dotted path.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "attention/spec.h"
#include "core/fields.h"

namespace sieve {

enum class Arch { gpt2, llama };
enum class ScorePer { kv_head, layer };
enum class ScoreNorm { none, timestep };
inline constexpr std::string_view kArchNames[] = {"gpt2", "llama"};
inline constexpr std::string_view kScorePerNames[] = {"kv_head", "layer"};
inline constexpr std::string_view kScoreNormNames[] = {"none", "timestep"};

struct ScoreConfig {
  ScorePer per = ScorePer::kv_head;
  std::optional<double> slope;  // auto: 1 / data.seq_len of pretraining
  ScoreNorm norm = ScoreNorm::none;
  double temperature = 1;
  std::optional<double> init_std;  // auto: 0.55 / sqrt(d_model)
  void fields(FieldVisitor& v);
};

struct AttentionKindConfig {
  AttentionKind type = AttentionKind::full;
  std::int64_t window = 0, sinks = 0, k = 0;
  GateMode gate = GateMode::kv;
  ScoreConfig score;
  Candidates candidates = Candidates::on_exit;
  PositionRule positions = PositionRule::absolute;
  std::optional<std::int64_t> clamp_distance;  // auto: window
  std::optional<std::int64_t> pool = 4;        // exact: all scores
  bool linear = false;
  std::optional<std::int64_t> seed;  // auto: run.seed, of random_rows
  PatternSpec pattern;               // of the other sparse kinds, its keys beside the ones above
  void fields(FieldVisitor& v);
};

// Problems of one kind, each with its key. head_dim: of the model.
using KindReport = std::function<void(const std::string& key, const std::string& problem)>;
void check_kind(const AttentionKindConfig& kind, std::int64_t seq_len, std::int64_t head_dim, const KindReport& report);

struct AttentionConfig {
  std::map<std::string, AttentionKindConfig> kinds;
  std::vector<std::string> pattern;  // cycled over the layers
  bool document_mask = true;
  void fields(FieldVisitor& v);
};

struct RopeConfig {
  double theta = 10000;
  double partial = 1;  // share of the head's dimensions that rotate
  void fields(FieldVisitor& v);
};

struct InitConfig {
  double std = 0.02;
  bool scale_residual = true;  // projections into the residual stream: std / sqrt(2 n_layers) (Radford et al. 2019)
  void fields(FieldVisitor& v);
};

struct ModelConfig {
  Arch arch = Arch::llama;
  std::int64_t n_layers = 4, d_model = 128, n_heads = 4;
  std::optional<std::int64_t> n_kv_heads;  // auto: n_heads
  std::optional<std::int64_t> head_dim;    // auto: d_model / n_heads
  std::optional<std::int64_t> d_ff;        // auto: 4 d_model (gpt2), 8/3 d_model rounded up to 64 (llama)
  std::optional<std::int64_t> max_seq;     // auto: data.seq_len
  std::optional<std::int64_t> vocab_size;  // auto: from the tokenizer
  double norm_eps = 1e-5;
  std::optional<bool> tie_embeddings;  // auto: true
  RopeConfig rope;
  AttentionConfig attention;
  InitConfig init;
  void fields(FieldVisitor& v);

  // Fills every `auto`. Call once per run; a resolved config resolves to itself. seed: run.seed, which random rows
  // keep.
  void resolve(std::int64_t tokenizer_vocab, std::int64_t seq_len, std::int64_t seed = 0);
  // Checks that need no data; `report(dotted path, message)` is called for each problem, paths relative to `model`.
  void check(std::int64_t seq_len, const std::function<void(const std::string&, const std::string&)>& report) const;

  // Of a resolved config:
  const AttentionKindConfig& kind_of_layer(std::int64_t layer) const;
  const std::string& kind_name_of_layer(std::int64_t layer) const;
  AttentionSpec attention_spec(std::int64_t layer) const;
  RopeSpec rope_spec() const;
  std::int64_t score_heads(std::int64_t layer) const;  // 0: the layer has no scorer
};

}  // namespace sieve
