// ConfigTree -> struct: a visitor that looks every field up in the tree, checks it and stores it, and knows at the end
// of each group which keys nobody asked for.
#include <algorithm>
#include <cstddef>
#include <deque>
#include <optional>
#include <type_traits>

#include "core/error.h"
#include "io/config_scalar.h"
#include "io/yaml.h"

namespace sieve {
namespace {

using Kind = ConfigNode::Kind;

std::string join(std::span<const std::string> names) {
  std::string out;
  for (const std::string& name : names) (out += out.empty() ? "" : ", ") += name;
  return out;
}

// Collects the keys of a group without looking into them.
class KeyCollector final : public FieldVisitor {
 public:
  std::vector<std::string> keys;

  void boolean(const Field& f, bool&) override { add(f); }
  void integer(const Field& f, std::int64_t&) override { add(f); }
  void real(const Field& f, double&) override { add(f); }
  void duration(const Field& f, double&) override { add(f); }
  void text(const Field& f, std::string&) override { add(f); }
  void boolean(const Field& f, std::optional<bool>&) override { add(f); }
  void integer(const Field& f, std::optional<std::int64_t>&) override { add(f); }
  void real(const Field& f, std::optional<double>&) override { add(f); }
  void duration(const Field& f, std::optional<double>&) override { add(f); }
  void text(const Field& f, std::optional<std::string>&) override { add(f); }
  void reals(const Field& f, std::vector<double>&) override { add(f); }
  void integers(const Field& f, std::vector<std::int64_t>&) override { add(f); }
  void texts(const Field& f, std::vector<std::string>&) override { add(f); }

 protected:
  void choice_index(const Field& f, std::span<const std::string_view>, int&) override { add(f); }
  void group_of(const Field& f, const Members&) override { add(f); }
  void table_of(const Field& f, const std::vector<std::string>&,
                const std::function<void(const std::string&, FieldVisitor&)>&, const Members&) override {
    add(f);
  }
  void list_of(const Field& f, std::size_t, const std::function<void(std::size_t)>&,
               const std::function<void(std::size_t, FieldVisitor&)>&, const Members&) override {
    add(f);
  }

 private:
  void add(const Field& f) { keys.emplace_back(f.name); }
};

class Binder final : public FieldVisitor {
 public:
  Binder(std::vector<ConfigProblem>& problems, const std::function<std::string(std::string_view)>& elsewhere)
      : problems_(problems), elsewhere_(elsewhere) {}

  void run(const ConfigNode& node, const std::string& path, const ConfigMembers& members) {
    KeyCollector known;
    members(known);
    open_.push_back({&node, path});
    members(*this);
    open_.pop_back();
    for (const auto& [key, value] : node.members) {
      if (std::find(known.keys.begin(), known.keys.end(), key) == known.keys.end())
        unknown(value, path, key, known.keys);
    }
  }

  void boolean(const Field& f, bool& out) override { scalar(f, out, read_boolean); }
  void integer(const Field& f, std::int64_t& out) override { scalar(f, out, read_integer); }
  void real(const Field& f, double& out) override { scalar(f, out, read_real); }
  void duration(const Field& f, double& out) override { scalar(f, out, read_duration); }
  void text(const Field& f, std::string& out) override { scalar(f, out, read_text); }
  void boolean(const Field& f, std::optional<bool>& out) override { optional(f, out, read_boolean); }
  void integer(const Field& f, std::optional<std::int64_t>& out) override { optional(f, out, read_integer); }
  void real(const Field& f, std::optional<double>& out) override { optional(f, out, read_real); }
  void duration(const Field& f, std::optional<double>& out) override { optional(f, out, read_duration); }
  void text(const Field& f, std::optional<std::string>& out) override { optional(f, out, read_text); }
  void reals(const Field& f, std::vector<double>& out) override { scalars(f, out, read_real); }
  void integers(const Field& f, std::vector<std::int64_t>& out) override { scalars(f, out, read_integer); }
  void texts(const Field& f, std::vector<std::string>& out) override { scalars(f, out, read_text); }

 protected:
  void choice_index(const Field& f, std::span<const std::string_view> names, int& index) override {
    const ConfigNode* node = find(f);
    if (node == nullptr) return;
    if (!node->is_scalar()) return wrong(f, *node, cat("wants one of ", choices(names), ", got ", node->kind_name()));
    const auto it = std::find(names.begin(), names.end(), node->text);
    if (it == names.end()) {
      const std::string_view near = nearest_name(node->text, names);
      return wrong(f, *node,
                   cat("wants one of ", choices(names), ", got \"", node->text, "\"",
                       near.empty() ? "" : cat(" (did you mean \"", near, "\"?)")));
    }
    index = static_cast<int>(it - names.begin());
  }

  void group_of(const Field& f, const Members& members) override {
    const ConfigNode* node = find(f);
    if (node == nullptr || node->kind == Kind::null) return;
    group(*node, path_of(f), members);
  }

  void table_of(const Field& f, const std::vector<std::string>&,
                const std::function<void(const std::string&, FieldVisitor&)>& entry, const Members&) override {
    const ConfigNode* node = find(f);
    if (node == nullptr || node->kind == Kind::null) return;
    if (node->kind != Kind::map) return wrong(f, *node, cat("wants a map of names, got ", node->kind_name()));
    for (const auto& [name, value] : node->members) {
      const ConfigMembers members = [&entry, &name = name](FieldVisitor& v) { entry(name, v); };
      if (value.kind == Kind::null) {  // "name:" alone is an entry of nothing but defaults
        ConfigNode& empty = made_.emplace_back(value);
        empty.kind = Kind::map;
        run(empty, path_of(f) + "." + name, members);
      } else {
        group(value, path_of(f) + "." + name, members);
      }
    }
  }

  void list_of(const Field& f, std::size_t, const std::function<void(std::size_t)>& resize,
               const std::function<void(std::size_t, FieldVisitor&)>& element, const Members&) override {
    const ConfigNode* node = find(f);
    if (node == nullptr) return;
    const bool lone = node->is_scalar() && !f.shorthand.empty();  // train: data/*.h5 for train: [{path: data/*.h5}]
    if (node->kind != Kind::list && !lone) {
      return wrong(
          f, *node,
          cat("wants a list", f.shorthand.empty() ? "" : cat(" or a ", f.shorthand), ", got ", node->kind_name()));
    }
    const std::span<const ConfigNode> items = lone ? std::span(node, 1) : std::span<const ConfigNode>(node->items);
    resize(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      const ConfigNode* item = &items[i];
      if (item->is_scalar() && !f.shorthand.empty()) {
        ConfigNode& map = made_.emplace_back();
        map.kind = Kind::map;
        map.origin = item->origin;
        map.members.emplace_back(std::string(f.shorthand), *item);
        item = &map;
      }
      group(*item, cat(path_of(f), "[", i, "]"), [&element, i](FieldVisitor& v) { element(i, v); });
    }
  }

 private:
  struct Frame {
    const ConfigNode* node;
    std::string path;
  };

  static std::string read_text(std::string_view text, std::string& out) {
    out = text;
    return "";
  }
  static std::string choices(std::span<const std::string_view> names) {
    return join(std::vector<std::string>(names.begin(), names.end()));
  }

  std::string path_of(const Field& f) const {
    const std::string& parent = open_.back().path;
    return parent.empty() ? std::string(f.name) : cat(parent, ".", f.name);
  }
  const ConfigNode* find(const Field& f) const { return open_.back().node->find(f.name); }
  void wrong(const Field& f, const ConfigNode& node, std::string message, std::string_view suffix = "") {
    problems_.push_back({node.origin, cat(path_of(f), suffix), std::move(message)});
  }

  void group(const ConfigNode& node, const std::string& path, const ConfigMembers& members) {
    if (node.kind == Kind::map) return run(node, path, members);
    KeyCollector known;
    members(known);
    problems_.push_back(
        {node.origin, path,
         cat("wants a map of keys, got ", node.kind_name(), "\n  known keys here: ", join(known.keys))});
  }

  void unknown(const ConfigNode& value, const std::string& path, const std::string& key,
               const std::vector<std::string>& known) {
    const std::string_view near = nearest_name(key, std::vector<std::string_view>(known.begin(), known.end()));
    std::string hint;
    if (!near.empty()) {
      hint = cat(" (did you mean \"", near, "\"?)");
    } else if (const std::string other = elsewhere_(key); !other.empty()) {
      hint = cat(" (there is ", other, ")");
    }
    problems_.push_back({value.origin, path.empty() ? key : path + "." + key,
                         cat("unknown key", hint, "\n  known keys here: ", join(known))});
  }

  // Why `node` cannot be a `T`, or "" after storing it in `out`.
  template <class T>
  static std::string convert(const Field& f, const ConfigNode& node, T& out,
                             std::string (*read)(std::string_view, T&)) {
    constexpr bool is_text = std::is_same_v<T, std::string>;
    T value{};
    if (node.kind == Kind::null) return "has no value";
    if (node.kind == Kind::list || node.kind == Kind::map) {
      std::string wants = "wants a text";
      if constexpr (!is_text) {  // the reader's own words, up to what it got
        wants = read("", value);
        wants = wants.substr(0, wants.find(", got"));
      }
      return cat(wants, ", got ", node.kind_name());
    }
    if (!is_text && node.kind == Kind::quoted) {
      std::string wants = read("", value);
      return cat(wants.substr(0, wants.find(", got")), ", got the text \"", node.text, "\"");
    }
    if (std::string why = read(node.text, value); !why.empty()) return why;
    if constexpr (std::is_same_v<T, double> || std::is_same_v<T, std::int64_t>) {
      const auto number = static_cast<double>(value);
      if (number < f.min) return cat("must be at least ", format_real(f.min), ", got ", node.text);
      if (number > f.max) return cat("must be at most ", format_real(f.max), ", got ", node.text);
    }
    out = std::move(value);
    return "";
  }

  template <class T>
  void scalar(const Field& f, T& out, std::string (*read)(std::string_view, T&)) {
    const ConfigNode* node = find(f);
    if (node == nullptr) return;
    std::string why = convert(f, *node, out, read);
    if (why == "has no value" && std::is_same_v<T, std::string>) why += " (write \"\" for an empty text)";
    if (!why.empty()) wrong(f, *node, std::move(why));
  }

  template <class T>
  void optional(const Field& f, std::optional<T>& out, std::string (*read)(std::string_view, T&)) {
    const ConfigNode* node = find(f);
    if (node == nullptr) return;
    if (f.none == "null" ? node->kind == Kind::null : node->kind == Kind::plain && node->text == f.none) {
      out.reset();
      return;
    }
    T value{};
    std::string why = convert(f, *node, value, read);
    if (why.empty()) {
      out = std::move(value);
    } else {
      wrong(f, *node, cat(why, " (or ", f.none, ")"));
    }
  }

  template <class T>
  void scalars(const Field& f, std::vector<T>& out, std::string (*read)(std::string_view, T&)) {
    const ConfigNode* node = find(f);
    if (node == nullptr) return;
    // One text stands for a list of itself (val: data/val/*.h5); for numbers that would be a guess.
    const bool lone = std::is_same_v<T, std::string> && node->is_scalar();
    if (node->kind != Kind::list && !lone) {
      const std::string hint = node->is_scalar() ? cat(" (write [", node->text, "])") : "";
      return wrong(
          f, *node,
          cat("wants a list", std::is_same_v<T, std::string> ? " or a text" : "", ", got ", node->kind_name(), hint));
    }
    const std::span<const ConfigNode> items = lone ? std::span(node, 1) : std::span<const ConfigNode>(node->items);
    out.assign(items.size(), T{});
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (std::string why = convert(f, items[i], out[i], read); !why.empty())
        wrong(f, items[i], std::move(why), cat("[", i, "]"));
    }
  }

  std::vector<ConfigProblem>& problems_;
  const std::function<std::string(std::string_view)>& elsewhere_;
  std::vector<Frame> open_;
  std::deque<ConfigNode> made_;  // maps that shorthands stand for
};

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0u : 1u)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

}  // namespace

std::string_view nearest_name(std::string_view name, std::span<const std::string_view> candidates) {
  std::string_view best;
  std::size_t best_distance = 0;
  if (name.size() > 64) return best;
  for (std::string_view candidate : candidates) {
    std::size_t distance = edit_distance(name, candidate);
    // A cut-off or lengthened word is a slip however long the difference: warm, warmup.
    const bool prefix =
        std::min(name.size(), candidate.size()) >= 3 && (candidate.starts_with(name) || name.starts_with(candidate));
    if (prefix) distance = 1;
    const std::size_t allowed = std::max<std::size_t>(1, std::max(name.size(), candidate.size()) / 3);
    if (distance > allowed || distance >= std::min(name.size(), candidate.size())) continue;
    if (best.empty() || distance < best_distance) best = candidate, best_distance = distance;
  }
  return best;
}

void ConfigTree::bind_members(const ConfigMembers& members) const {
  std::vector<ConfigProblem> problems = problems_;
  // Where else in the whole configuration a key of that name stands.
  const std::function<std::string(std::string_view)> elsewhere = [&members](std::string_view key) {
    std::string found;
    int count = 0;
    for (const FieldInfo& field : list_members(members)) {
      const std::size_t dot = field.path.rfind('.');
      if (std::string_view(field.path).substr(dot == std::string::npos ? 0 : dot + 1) == key && ++count <= 3) {
        (found += found.empty() ? "" : ", ") += field.path;
      }
    }
    return found;
  };
  Binder(problems, elsewhere).run(root_, "", members);
  throw_problems(std::move(problems));
}

}  // namespace sieve
