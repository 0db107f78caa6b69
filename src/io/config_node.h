// A value of a configuration tree and where it came from. Internal to src/io's configuration code; users see io/yaml.h.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sieve {

// Where a value was given. `line` is 0 where the source has no lines.
struct ConfigOrigin {
  std::string source = "default";  // a file, "command line", "environment SIEVE_a__b" or "default"
  int line = 0, column = 0;        // from 1
  int order = -1;                  // sources in the order they were read; -1: the built-in default

  bool is_default() const { return order < 0; }
  std::string place() const;  // "file.yaml:14:5", "command line"
  std::string brief() const;  // "file.yaml:14", for comments
};

struct ConfigNode {
  enum class Kind {
    null,
    plain,
    quoted,
    list,
    map
  };  // plain and quoted are scalars; the difference decides what text is
  Kind kind = Kind::null;
  std::string text;                                         // scalars: as written, unescaped
  std::vector<ConfigNode> items;                            // lists
  std::vector<std::pair<std::string, ConfigNode>> members;  // maps, in order of appearance
  ConfigOrigin origin;                                      // of a map member: the place of its key

  bool is_scalar() const { return kind == Kind::plain || kind == Kind::quoted; }
  const ConfigNode* find(std::string_view key) const;
  ConfigNode* find(std::string_view key);
  std::string_view kind_name() const;  // "a list", "a map", ...: for messages
};

struct ConfigProblem {
  ConfigOrigin origin;
  std::string path;  // dotted, may be empty
  std::string message;
};

// YAML text -> tree. Everything doubled, anchored, tagged or keyed by something else than a name is added to `problems`
// and left out; what no tree can be made of (syntax, encoding, depth) throws Error(Exit::config) with its place. Places
// have lines and columns if source.line is not 0. `path` is the dotted path that the text is the value of.
ConfigNode parse_yaml(std::string_view text, const ConfigOrigin& source, const std::string& path,
                      std::vector<ConfigProblem>& problems);

// "PLACE: error: path: message"
std::string problem_text(const ConfigProblem& problem);
// Throws Error(Exit::config) with one line per problem in the order of places, at most 20; returns if there are none.
void throw_problems(std::vector<ConfigProblem> problems);

}  // namespace sieve
