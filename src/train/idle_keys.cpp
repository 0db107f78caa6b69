#include "train/idle_keys.h"

#include <map>

#include "core/log.h"

namespace sieve {
namespace {

// Keys at or below `prefix` have no effect.
struct IdleRule {
  std::string prefix, why;
};

void rules_of_kind(const std::string& name, const AttentionKindConfig& kind, Arch arch, std::vector<IdleRule>& rules) {
  const std::string path = "model.attention.kinds." + name + ".";
  if (kind.type != AttentionKind::strided && kind.type != AttentionKind::fixed)
    rules.push_back({path + "part", "only types strided and fixed have two sets of keys"});
  if (kind.type != AttentionKind::random_rows)
    rules.push_back({path + "seed", "only type random_rows draws numbers of a seed of its own"});
  if (kind.type == AttentionKind::random_rows) {
    for (const char* key : {"gate", "pool", "score.slope", "score.norm", "score.temperature", "score.init_std"})
      rules.push_back({path + key, "type random_rows selects by random numbers, nothing learns or gates"});
  } else if (kind.type != AttentionKind::sparsek) {
    const std::string why = cat("only type sparsek has a scoring network, this is ",
                                kAttentionKindNames[static_cast<std::size_t>(kind.type)]);
    for (const char* key : {"gate", "score", "candidates", "positions", "clamp_distance", "pool"})
      rules.push_back({path + key, why});
    return;
  }
  if (arch == Arch::gpt2) {
    for (const char* key : {"positions", "clamp_distance"})
      rules.push_back({path + key, "model.arch gpt2 has learned positions, no rotary ones"});
  } else if (kind.positions != PositionRule::clamp) {
    rules.push_back({path + "clamp_distance", "it belongs to positions: clamp"});
  }
}

std::vector<IdleRule> rules_of(const RunConfig& c, bool any_scorer) {
  std::vector<IdleRule> rules;
  for (const auto& [name, kind] : c.model.attention.kinds) rules_of_kind(name, kind, c.model.arch, rules);
  if (c.model.arch == Arch::gpt2)
    rules.push_back({"model.rope", "model.arch gpt2 has learned positions, no rotary ones"});
  if (c.train.schedule.type != ScheduleType::wsd)
    rules.push_back({"train.schedule.decay", "it belongs to schedule type wsd"});
  if (c.train.schedule.type == ScheduleType::constant)
    rules.push_back({"train.schedule.min_lr", "the rate of schedule type constant does not fall"});
  if (c.train.nonfinite.action == NonfiniteAction::stop)
    rules.push_back({"train.nonfinite.max", "action stop skips no update"});
  if (c.data.val.empty()) {
    for (const char* key : {"eval", "checkpoint.keep_best"})
      rules.push_back({key, "data.val is empty: nothing is validated"});
  }
  if (!any_scorer) rules.push_back({"log.per_layer", "no layer's pattern selects keys"});
  return rules;
}

// The defaults as they would resolve here: the slope of a kind depends on data.seq_len, its clamp distance on the
// window.
RunConfig defaults_for(const RunConfig& resolved) {
  RunConfig d;
  static_cast<ModelConfig&>(d.model) = resolved.model;
  d.model.rope = {};
  for (auto& [name, kind] : d.model.attention.kinds)
    kind = AttentionKindConfig{.type = kind.type, .window = kind.window, .sinks = kind.sinks, .k = kind.k};
  d.model.resolve(*resolved.model.vocab_size, resolved.data.seq_len);
  return d;
}

bool at_or_below(const std::string& path, const std::string& prefix) {
  return path.rfind(prefix, 0) == 0 && (path.size() == prefix.size() || path[prefix.size()] == '.');
}

}  // namespace

std::vector<std::string> idle_keys(const RunConfig& config, const ConfigTree& tree) {
  RunConfig resolved = config;
  resolved.model.resolve(config.model.vocab_size.value_or(1), config.data.seq_len);
  bool any_scorer = false;
  for (std::int64_t layer = 0; layer < resolved.model.n_layers; ++layer)
    any_scorer = any_scorer || resolved.model.score_heads(layer) > 0;
  std::map<std::string, std::string> usual;
  for (const FieldText& field : flatten_config(defaults_for(resolved))) usual[field.path] = field.text;

  std::vector<std::string> lines;
  const std::vector<IdleRule> rules = rules_of(config, any_scorer);
  for (const FieldText& field : flatten_config(resolved)) {
    if (!tree.given(field.path) || usual[field.path] == field.text) continue;
    if (tree.origin_of(field.path).source.rfind("checkpoint ", 0) == 0) continue;
    for (const IdleRule& rule : rules) {
      if (!at_or_below(field.path, rule.prefix)) continue;
      lines.push_back(cat(tree.place_of(field.path), ": warning: ", field.path, ": has no effect: ", rule.why));
      break;
    }
  }
  return lines;
}

void warn_of_idle_keys(const RunConfig& config, const ConfigTree& tree) {
  for (const auto& line : idle_keys(config, tree)) log_warn(line);
}

}  // namespace sieve
