// Strict configuration: YAML files, `extends`, SIEVE_a__b variables and key=value arguments become one tree in which
// every value knows where it came from; the tree is bound to a struct through its field list (core/fields.h). Nothing
// is coerced in silence: unknown, doubled, mistyped and out-of-range keys throw Error(Exit::config) whose text has one
// line per problem,
//   configs/pretrain.yaml:14:5: error: model.attention.kinds.sk.windwo: unknown key (did you mean "window"?)
//     known keys here: type, k, window, gate, score, candidates, pool
// all problems at once (at most 20), in the order of their places. docs/configuration.md explains the syntax of values.
//
//   ConfigTree tree;
//   tree.load("configs/pretrain.yaml");            // built-in < extends < file < environment < command line
//   tree.overlay_environment();
//   tree.overlay({"train.tokens=10B"});
//   RunConfig config;                              // its member defaults are the built-in defaults
//   tree.bind(config);
//   if (config.train.warmup > steps) tree.fail_at("train.schedule.warmup", "is longer than the run");
//   std::string resolved = dump_yaml(config, tree);
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/fields.h"
#include "io/config_node.h"

namespace sieve {

using ConfigMembers = std::function<void(FieldVisitor&)>;

class ConfigTree {
 public:
  ConfigTree() { root_.kind = ConfigNode::Kind::map; }

  // Each later source overrides the earlier ones: maps merge, lists and scalars replace.
  // A file first loads what its `extends:` (a path or a list of paths, relative to the file) names; cycles are refused.
  void load(const std::filesystem::path& file);
  // Text of a configuration that is not a file of its own; `name` stands for it in messages. `extends` is refused.
  void load_text(std::string_view text, const std::string& name);
  // "dotted.path=value", value in YAML syntax: train.tokens=10B, model.attention.pattern=[sk,sk], run={name: a, seed:
  // 3}.
  void overlay(std::span<const std::string> assignments);
  void overlay(std::initializer_list<std::string> assignments) {
    overlay(std::span(assignments.begin(), assignments.size()));
  }
  // SIEVE_a__b=value sets a.b. Only names with a lower-case letter after SIEVE_ are keys; others are left to their
  // owners.
  void overlay_environment();
  void overlay_environment(std::span<const std::pair<std::string, std::string>> variables);

  template <class S>
  void bind(S& value) const {
    bind_members([&value](FieldVisitor& v) { value.fields(v); });
  }
  void bind_members(const ConfigMembers& members) const;

  // Was the key given by any source (not just its default)? Paths are dotted; list elements are written a.b[2].c.
  bool given(std::string_view path) const;
  ConfigOrigin origin_of(std::string_view path) const;  // is_default() where it was not given
  bool gives_scalar(std::string_view path) const;       // the key is given, as a scalar
  // Error(Exit::config) "PLACE: error: path: message"; the place of a key that was not given is that of the nearest
  // given parent, without one the beginning of the last file.
  [[noreturn]] void fail_at(std::string_view path, std::string_view message) const;
  // The same for several (path, message) pairs at once, in the order of their places; returns if there are none.
  void fail_all(std::span<const std::pair<std::string, std::string>> problems) const;
  std::string place_of(std::string_view path) const;  // for warnings: "file.yaml:14:5"

  // Every file read so far, in the order of reading (a parent before the file that extends it).
  const std::vector<std::filesystem::path>& files() const { return files_; }

 private:
  void load_file(const std::filesystem::path& file, std::vector<std::filesystem::path>& open);
  void set_path(std::string_view path, std::string_view value, const ConfigOrigin& origin);
  const ConfigNode* find(std::string_view path) const;
  ConfigOrigin nearest_origin(std::string_view path) const;

  ConfigNode root_;
  std::vector<ConfigProblem> problems_;  // found while reading; bind reports them with its own
  std::vector<std::filesystem::path> files_;
  int sources_ = 0;
};

// Edit distance (Levenshtein with transpositions) small enough to be a slip: the nearest candidate, or "" if none is
// near.
std::string_view nearest_name(std::string_view name, std::span<const std::string_view> candidates);

// What `config explain`, the schema and docs/configuration.md are made of: one entry per leaf, in field order. Entries
// of tables are written kinds.*.window, elements of lists train[].path.
struct FieldInfo {
  std::string path;
  std::string type;  // "integer", "list of texts", "choice", "table of groups", ... ; groups themselves are listed too
  std::string default_text;  // in YAML syntax; empty for groups
  std::string doc;
  std::vector<std::string> choices;  // of a choice
  double min, max;                   // numbers: inclusive; infinite where there is no bound
  std::string none;                  // optionals: how absence is written
  bool is_leaf;
};

// A leaf with its value as the dump writes it.
struct FieldText {
  std::string path, text;
  bool operator==(const FieldText&) const = default;
};

std::string dump_members(const ConfigMembers& members, const ConfigTree* sources);
std::vector<FieldInfo> list_members(const ConfigMembers& members);
std::vector<FieldText> flatten_members(const ConfigMembers& members);
nlohmann::json json_of_members(const ConfigMembers& members);
std::uint64_t hash_members(const ConfigMembers& members, std::span<const std::string_view> skip);

template <class S>
ConfigMembers members_of(S& value) {
  return [&value](FieldVisitor& v) { value.fields(v); };
}
// The resolved configuration: every key, in field order, each with its source as a trailing comment ("# file.yaml:3",
// "# default", "# command line"). Loading it again gives the same values bit by bit.
template <class S>
std::string dump_yaml(S value, const ConfigTree& sources) {
  return dump_members(members_of(value), &sources);
}
template <class S>
std::string dump_yaml(S value) {  // without comments
  return dump_members(members_of(value), nullptr);
}
template <class S>
std::vector<FieldInfo> list_fields(S value) {
  return list_members(members_of(value));
}
// Every leaf in field order: two of these give `config diff` and the resume check.
template <class S>
std::vector<FieldText> flatten_config(S value) {
  return flatten_members(members_of(value));
}
// For manifests: include <nlohmann/json.hpp> (or io/json.h) to use it. Absent optionals are null.
template <class S, class J = nlohmann::json>
J config_json(S value) {
  return json_of_members(members_of(value));
}
// XXH3-64 of all leaves but those whose dotted path is in `skip` or below one of its entries ("run", "log.every").
template <class S>
std::uint64_t config_hash(S value, std::span<const std::string_view> skip = {}) {
  return hash_members(members_of(value), skip);
}

}  // namespace sieve
