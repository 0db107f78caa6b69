#include <algorithm>
#include <charconv>
#include <cstddef>
#include <tuple>
#include <utility>

#include "core/error.h"
#include "io/file.h"
#include "io/yaml.h"

extern char** environ;  // POSIX

namespace sieve {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kMaxFileBytes = 4 << 20;
constexpr std::size_t kMaxProblems = 20;
constexpr std::string_view kPrefix = "SIEVE_";

void merge(ConfigNode& into, ConfigNode&& from) {
  using Kind = ConfigNode::Kind;
  // An empty "model:" (all of its keys commented out) gives nothing, and takes nothing away either.
  if (into.kind == Kind::map && from.kind == Kind::null) return;
  if (into.kind != Kind::map || from.kind != Kind::map) {
    into = std::move(from);
    return;
  }
  into.origin = from.origin;
  for (auto& [key, value] : from.members) {
    if (ConfigNode* old = into.find(key)) {
      merge(*old, std::move(value));
    } else {
      into.members.emplace_back(key, std::move(value));
    }
  }
}

// Takes the first part off a dotted path: "a.b[2].c" -> "a"; "[2].c" -> "[2]".
std::string_view pop_part(std::string_view& path) {
  const std::size_t end = path.find_first_of(".[", 1);
  const std::string_view part = path.substr(0, end);
  path = end == std::string_view::npos ? std::string_view() : path.substr(path[end] == '.' ? end + 1 : end);
  return part;
}

const ConfigNode* child(const ConfigNode& node, std::string_view part) {
  if (part.empty() || part[0] != '[') return node.find(part);
  std::size_t index = 0;
  const auto [end, error] = std::from_chars(part.data() + 1, part.data() + part.size(), index);
  if (error != std::errc() || end == part.data() + part.size() || *end != ']') return nullptr;
  if (node.is_scalar() && index == 0) return &node;  // a scalar where a list is meant is its one element
  return index < node.items.size() ? &node.items[index] : nullptr;
}

}  // namespace

std::string ConfigOrigin::place() const { return line == 0 ? source : cat(source, ":", line, ":", column); }
std::string ConfigOrigin::brief() const { return line == 0 ? source : cat(source, ":", line); }

const ConfigNode* ConfigNode::find(std::string_view key) const {
  for (const auto& member : members) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}
ConfigNode* ConfigNode::find(std::string_view key) { return const_cast<ConfigNode*>(std::as_const(*this).find(key)); }

std::string_view ConfigNode::kind_name() const {
  switch (kind) {
    case Kind::null: return "nothing";
    case Kind::plain: return "a plain value";
    case Kind::quoted: return "a quoted text";
    case Kind::list: return "a list";
    case Kind::map: return "a map";
  }
  return "?";
}

std::string problem_text(const ConfigProblem& p) {
  return cat(p.origin.place(), ": error: ", p.path, p.path.empty() ? "" : ": ", p.message);
}

void throw_problems(std::vector<ConfigProblem> problems) {
  if (problems.empty()) return;
  std::stable_sort(problems.begin(), problems.end(), [](const ConfigProblem& a, const ConfigProblem& b) {
    return std::tie(a.origin.order, a.origin.line, a.origin.column) <
           std::tie(b.origin.order, b.origin.line, b.origin.column);
  });
  std::string text;
  for (std::size_t i = 0; i < std::min(problems.size(), kMaxProblems); ++i) {
    (text += i == 0 ? "" : "\n") += problem_text(problems[i]);
  }
  if (problems.size() > kMaxProblems) text += cat("\n... and ", problems.size() - kMaxProblems, " more");
  throw Error(Exit::config, text);
}

namespace {

void set_order(ConfigNode& node, int order) {
  node.origin.order = order;
  for (ConfigNode& item : node.items) set_order(item, order);
  for (auto& member : node.members) set_order(member.second, order);
}

}  // namespace

void ConfigTree::load(const fs::path& file) {
  std::vector<fs::path> open;
  load_file(file, open);
}

void ConfigTree::load_file(const fs::path& file, std::vector<fs::path>& open) {
  ConfigOrigin source{file.string(), 1, 1, sources_};
  const std::string text = read_file(file, kMaxFileBytes, Exit::config);
  std::vector<ConfigProblem> problems;
  ConfigNode root = parse_yaml(text, source, "", problems);
  if (root.kind != ConfigNode::Kind::map && root.kind != ConfigNode::Kind::null) {
    throw Error(Exit::config,
                problem_text({root.origin, "", cat("a configuration is a map of keys, not ", root.kind_name())}));
  }
  open.push_back(fs::canonical(file));
  const auto extends =
      std::find_if(root.members.begin(), root.members.end(), [](auto& m) { return m.first == "extends"; });
  if (extends != root.members.end()) {
    ConfigNode value = std::move(extends->second);
    root.members.erase(extends);
    if (value.is_scalar()) value.items = {value};
    for (const ConfigNode& item : value.items) {
      const auto refuse = [&](const std::string& message) {
        throw Error(Exit::config, problem_text({item.origin, "extends", message}));
      };
      if (!item.is_scalar() || item.text.empty()) refuse("wants a path or a list of paths");
      const fs::path parent = (file.parent_path() / item.text).lexically_normal();
      std::error_code error;
      const fs::path canonical = fs::canonical(parent, error);
      if (error || !fs::is_regular_file(canonical)) refuse(cat("there is no file ", parent.string()));
      if (std::find(open.begin(), open.end(), canonical) != open.end()) refuse(cat(parent.string(), " extends itself"));
      load_file(parent, open);
    }
    if (!value.is_scalar() && value.kind != ConfigNode::Kind::list) {
      throw Error(Exit::config, problem_text({value.origin, "extends", "wants a path or a list of paths"}));
    }
  }
  open.pop_back();
  set_order(root, sources_);  // after its parents: what was read later is nearer
  for (ConfigProblem& problem : problems) problem.origin.order = sources_;
  problems_.insert(problems_.end(), problems.begin(), problems.end());
  ++sources_;
  merge(root_, std::move(root));
  files_.push_back(file);
}

void ConfigTree::load_text(std::string_view text, const std::string& name) {
  ConfigNode root = parse_yaml(text, ConfigOrigin{name, 1, 1, sources_++}, "", problems_);
  if (root.kind != ConfigNode::Kind::map && root.kind != ConfigNode::Kind::null) {
    throw Error(Exit::config,
                problem_text({root.origin, "", cat("a configuration is a map of keys, not ", root.kind_name())}));
  }
  if (const ConfigNode* extends = root.find("extends")) {
    throw Error(Exit::config, problem_text({extends->origin, "extends", "only files can extend files"}));
  }
  merge(root_, std::move(root));
}

void ConfigTree::set_path(std::string_view path, std::string_view value, const ConfigOrigin& origin) {
  const std::string full(path);
  const auto refuse = [&](const std::string& message) {
    throw Error(Exit::config, problem_text({origin, full, message}));
  };
  if (full.find('[') != std::string::npos) refuse("elements of a list cannot be set one by one: give the whole list");
  ConfigNode leaf = parse_yaml(value, origin, full, problems_);
  leaf.origin = origin;
  std::vector<std::string_view> parts;
  for (std::string_view rest = path; !rest.empty();) {
    parts.push_back(pop_part(rest));
    if (parts.back().empty() || parts.back()[0] == '.') refuse("not a dotted path of keys");
  }
  if (path.empty() || path.back() == '.') refuse("not a dotted path of keys");
  if (full == "extends") refuse("only files can extend files");
  for (std::size_t i = parts.size(); i-- > 0;) {
    ConfigNode map;
    map.kind = ConfigNode::Kind::map;
    map.origin = origin;
    map.members.emplace_back(std::string(parts[i]), std::move(leaf));
    leaf = std::move(map);
  }
  merge(root_, std::move(leaf));
}

void ConfigTree::overlay(std::span<const std::string> assignments) {
  const ConfigOrigin origin{"command line", 0, 0, sources_++};
  for (const std::string& assignment : assignments) {
    const std::size_t equals = assignment.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw Error(Exit::config, cat("command line: error: \"", assignment, "\" is not of the form key=value"));
    }
    set_path(std::string_view(assignment).substr(0, equals), std::string_view(assignment).substr(equals + 1), origin);
  }
}

void ConfigTree::overlay_environment() {
  std::vector<std::pair<std::string, std::string>> variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::size_t equals = text.find('=');
    if (equals != std::string_view::npos) variables.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  std::sort(variables.begin(), variables.end());  // the environment has no order of its own
  overlay_environment(variables);
}

void ConfigTree::overlay_environment(std::span<const std::pair<std::string, std::string>> variables) {
  for (const auto& [name, value] : variables) {
    if (name.compare(0, kPrefix.size(), kPrefix) != 0 || name.size() == kPrefix.size()) continue;
    if (name[kPrefix.size()] < 'a' || name[kPrefix.size()] > 'z') continue;
    std::string path = name.substr(kPrefix.size());
    for (std::size_t at; (at = path.find("__")) != std::string::npos;) path.replace(at, 2, ".");
    set_path(path, value, ConfigOrigin{"environment " + name, 0, 0, sources_++});
  }
}

const ConfigNode* ConfigTree::find(std::string_view path) const {
  const ConfigNode* node = &root_;
  while (!path.empty() && node != nullptr) node = child(*node, pop_part(path));
  return node;
}

bool ConfigTree::given(std::string_view path) const { return find(path) != nullptr; }

bool ConfigTree::gives_scalar(std::string_view path) const {
  const ConfigNode* node = find(path);
  return node != nullptr && node->is_scalar();
}

ConfigOrigin ConfigTree::origin_of(std::string_view path) const {
  const ConfigNode* node = find(path);
  return node == nullptr ? ConfigOrigin{} : node->origin;
}

ConfigOrigin ConfigTree::nearest_origin(std::string_view path) const {
  const ConfigNode* node = &root_;
  ConfigOrigin nearest;
  // What nothing gives is missing from the file that was named.
  if (!files_.empty()) nearest = ConfigOrigin{files_.back().string(), 1, 1, sources_};
  while (!path.empty()) {
    node = child(*node, pop_part(path));
    if (node == nullptr) break;
    nearest = node->origin;
  }
  return nearest;
}

std::string ConfigTree::place_of(std::string_view path) const { return nearest_origin(path).place(); }

void ConfigTree::fail_at(std::string_view path, std::string_view message) const {
  throw Error(Exit::config, problem_text({nearest_origin(path), std::string(path), std::string(message)}));
}

void ConfigTree::fail_all(std::span<const std::pair<std::string, std::string>> problems) const {
  std::vector<ConfigProblem> placed;
  for (const auto& [path, message] : problems) placed.push_back({nearest_origin(path), path, message});
  throw_problems(std::move(placed));
}

}  // namespace sieve
