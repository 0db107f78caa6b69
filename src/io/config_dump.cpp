// Struct -> text: the resolved configuration, the list of fields, JSON and the hash. All are visitors of the same field
// list.
#include <cstddef>
#include <limits>
#include <optional>

#include "core/error.h"
#include "io/config_scalar.h"
#include "io/file.h"
#include "io/json.h"
#include "io/yaml.h"

namespace sieve {
namespace {

template <class T>
std::string format_list(const std::vector<T>& values, std::string (*format)(T)) {
  std::string out = "[";
  for (std::size_t i = 0; i < values.size(); ++i) (out += i == 0 ? "" : ", ") += format(values[i]);
  return out + "]";
}

// Turns every leaf into one call with its written value and a word for its type.
class LeafVisitor : public FieldVisitor {
 public:
  void boolean(const Field& f, bool& v) override { leaf(f, "boolean", format_boolean(v), false); }
  void integer(const Field& f, std::int64_t& v) override { leaf(f, "integer", format_integer(v), false); }
  void real(const Field& f, double& v) override { leaf(f, "number", format_real(v), false); }
  void duration(const Field& f, double& v) override { leaf(f, "duration", format_duration(v), false); }
  void text(const Field& f, std::string& v) override { leaf(f, "text", format_text(v), false); }
  void boolean(const Field& f, std::optional<bool>& v) override {
    leaf(f, "boolean", v ? format_boolean(*v) : std::string(f.none), true);
  }
  void integer(const Field& f, std::optional<std::int64_t>& v) override {
    leaf(f, "integer", v ? format_integer(*v) : std::string(f.none), true);
  }
  void real(const Field& f, std::optional<double>& v) override {
    leaf(f, "number", v ? format_real(*v) : std::string(f.none), true);
  }
  void duration(const Field& f, std::optional<double>& v) override {
    leaf(f, "duration", v ? format_duration(*v) : std::string(f.none), true);
  }
  void text(const Field& f, std::optional<std::string>& v) override {
    leaf(f, "text", v ? format_text(*v, f.none) : std::string(f.none), true);
  }
  void reals(const Field& f, std::vector<double>& v) override {
    leaf(f, "list of numbers", format_list(v, format_real), false);
  }
  void integers(const Field& f, std::vector<std::int64_t>& v) override {
    leaf(f, "list of integers", format_list(v, format_integer), false);
  }
  void texts(const Field& f, std::vector<std::string>& v) override {
    std::string out = "[";
    for (std::size_t i = 0; i < v.size(); ++i) (out += i == 0 ? "" : ", ") += format_text(v[i]);
    leaf(f, "list of texts", out + "]", false);
  }

 protected:
  using Entry = std::function<void(const std::string&, FieldVisitor&)>;
  using Resize = std::function<void(std::size_t)>;
  using Element = std::function<void(std::size_t, FieldVisitor&)>;

  virtual void leaf(const Field& f, std::string_view type, std::string value, bool optional) = 0;
  void choice_index(const Field& f, std::span<const std::string_view> names, int& index) override {
    require(index >= 0 && static_cast<std::size_t>(index) < names.size(), "config", f.name, " holds ", index,
            ", which has no name");
    leaf(f, "choice", std::string(names[static_cast<std::size_t>(index)]), false);
  }

  std::string path_of(const Field& f) const { return path_.empty() ? std::string(f.name) : cat(path_, ".", f.name); }
  template <class F>
  void within(std::string path, F&& visit) {
    path_.swap(path);
    visit(*this);
    path_.swap(path);
  }

  std::string path_;
};

class Flattener final : public LeafVisitor {
 public:
  std::vector<FieldText> out;

 protected:
  void leaf(const Field& f, std::string_view, std::string value, bool) override {
    out.push_back({path_of(f), std::move(value)});
  }
  void group_of(const Field& f, const Members& members) override { within(path_of(f), members); }
  void table_of(const Field& f, const std::vector<std::string>& names, const Entry& entry, const Members&) override {
    for (const std::string& name : names) within(path_of(f) + "." + name, [&](FieldVisitor& v) { entry(name, v); });
  }
  void list_of(const Field& f, std::size_t size, const Resize&, const Element& element, const Members&) override {
    if (size == 0) out.push_back({path_of(f), "[]"});
    for (std::size_t i = 0; i < size; ++i)
      within(cat(path_of(f), "[", i, "]"), [&](FieldVisitor& v) { element(i, v); });
  }
};

class Dumper final : public LeafVisitor {
 public:
  explicit Dumper(const ConfigTree* sources) : sources_(sources) {}
  std::string out;

 protected:
  void leaf(const Field& f, std::string_view, std::string value, bool) override { line(f.name, value, origin_of(f)); }
  void group_of(const Field& f, const Members& members) override { nest(f.name, path_of(f), members); }
  void table_of(const Field& f, const std::vector<std::string>& names, const Entry& entry, const Members&) override {
    if (names.empty()) return line(f.name, "{}", origin_of(f));
    nest(f.name, path_of(f), [&](FieldVisitor&) {
      for (const std::string& name : names) nest(name, path_ + "." + name, [&](FieldVisitor& v) { entry(name, v); });
    });
  }
  void list_of(const Field& f, std::size_t size, const Resize&, const Element& element, const Members&) override {
    if (size == 0) return line(f.name, "[]", origin_of(f));
    line(f.name, "", std::nullopt);
    const std::string outer_shorthand = shorthand_;
    for (std::size_t i = 0; i < size; ++i) {
      const std::string path = cat(path_of(f), "[", i, "]");
      shorthand_ = f.shorthand;  // an inner list has put its own there
      dash_ = true;
      const std::string indent = indent_;
      indent_ += "    ";
      const std::size_t before = out.size();
      within(path, [&](FieldVisitor& v) { element(i, v); });
      indent_ = indent;
      if (out.size() == before) out += indent_ + "  - {}\n";
      dash_ = false;
    }
    shorthand_ = outer_shorthand;
  }

 private:
  void nest(std::string_view name, const std::string& path, const ConfigMembers& members) {
    line(name, "", std::nullopt);
    const std::string indent = indent_;
    const std::size_t before = out.size();
    indent_ += "  ";
    within(path, members);
    indent_ = indent;
    if (out.size() == before) out.insert(out.size() - 1, " {}");  // a group without fields
  }
  void line(std::string_view name, std::string_view value, const std::optional<ConfigOrigin>& origin) {
    std::string text = indent_;
    if (dash_) text.replace(text.size() - 2, 2, "- ");
    dash_ = false;
    text += cat(name, ":", value.empty() ? "" : " ", value);
    if (sources_ != nullptr && origin) {
      if (text.size() < 40) text.resize(40, ' ');
      std::string source = origin->brief();
      for (char& c : source) c = static_cast<unsigned char>(c) < 0x20 ? '?' : c;  // a path may hold a line break
      text += "  # " + source;
    }
    out += text + "\n";
  }
  std::optional<ConfigOrigin> origin_of(const Field& f) const {
    if (sources_ == nullptr) return std::nullopt;
    // An element given as a scalar gave its shorthand member.
    if (f.name == shorthand_ && sources_->gives_scalar(path_)) return sources_->origin_of(path_);
    return sources_->origin_of(path_of(f));
  }

  const ConfigTree* sources_;
  std::string indent_;
  std::string shorthand_;
  bool dash_ = false;  // the next line begins a list element
};

class Lister final : public LeafVisitor {
 public:
  std::vector<FieldInfo> out;

 protected:
  void leaf(const Field& f, std::string_view type, std::string value, bool optional) override {
    add(f, type, true).default_text = std::move(value);
    if (optional) out.back().none = f.none;
  }
  void choice_index(const Field& f, std::span<const std::string_view> names, int& index) override {
    LeafVisitor::choice_index(f, names, index);
    out.back().choices.assign(names.begin(), names.end());
  }
  void group_of(const Field& f, const Members& members) override {
    add(f, "group", false);
    within(path_of(f), members);
  }
  void table_of(const Field& f, const std::vector<std::string>&, const Entry&, const Members& prototype) override {
    add(f, "table of groups", false);
    within(path_of(f) + ".*", prototype);
  }
  void list_of(const Field& f, std::size_t, const Resize&, const Element&, const Members& prototype) override {
    add(f, "list of groups", false);
    within(path_of(f) + "[]", prototype);
  }

 private:
  FieldInfo& add(const Field& f, std::string_view type, bool is_leaf) {
    return out.emplace_back(
        FieldInfo{path_of(f), std::string(type), "", std::string(f.doc), {}, f.min, f.max, "", is_leaf});
  }
};

class JsonVisitor final : public FieldVisitor {
 public:
  Json out = Json::object();

  void boolean(const Field& f, bool& v) override { put(f, v); }
  void integer(const Field& f, std::int64_t& v) override { put(f, v); }
  void real(const Field& f, double& v) override { put(f, v); }
  void duration(const Field& f, double& v) override { put(f, v); }
  void text(const Field& f, std::string& v) override { put(f, v); }
  void boolean(const Field& f, std::optional<bool>& v) override { put_optional(f, v); }
  void integer(const Field& f, std::optional<std::int64_t>& v) override { put_optional(f, v); }
  void real(const Field& f, std::optional<double>& v) override { put_optional(f, v); }
  void duration(const Field& f, std::optional<double>& v) override { put_optional(f, v); }
  void text(const Field& f, std::optional<std::string>& v) override { put_optional(f, v); }
  void reals(const Field& f, std::vector<double>& v) override { put(f, v); }
  void integers(const Field& f, std::vector<std::int64_t>& v) override { put(f, v); }
  void texts(const Field& f, std::vector<std::string>& v) override { put(f, v); }

 protected:
  void choice_index(const Field& f, std::span<const std::string_view> names, int& index) override {
    put(f, std::string(names[static_cast<std::size_t>(index)]));
  }
  void group_of(const Field& f, const Members& members) override { put(f, within(members)); }
  void table_of(const Field& f, const std::vector<std::string>& names,
                const std::function<void(const std::string&, FieldVisitor&)>& entry, const Members&) override {
    Json table = Json::object();
    for (const std::string& name : names) table[name] = within([&](FieldVisitor& v) { entry(name, v); });
    put(f, std::move(table));
  }
  void list_of(const Field& f, std::size_t size, const std::function<void(std::size_t)>&,
               const std::function<void(std::size_t, FieldVisitor&)>& element, const Members&) override {
    Json list = Json::array();
    for (std::size_t i = 0; i < size; ++i) list.push_back(within([&](FieldVisitor& v) { element(i, v); }));
    put(f, std::move(list));
  }

 private:
  static Json within(const ConfigMembers& members) {
    JsonVisitor inner;
    members(inner);
    return std::move(inner.out);
  }
  void put(const Field& f, Json value) { out[std::string(f.name)] = std::move(value); }
  template <class T>
  void put_optional(const Field& f, const std::optional<T>& v) {
    put(f, v ? Json(*v) : Json(nullptr));
  }
};

bool is_below(std::string_view path, std::string_view prefix) {
  return path.starts_with(prefix) &&
         (path.size() == prefix.size() || path[prefix.size()] == '.' || path[prefix.size()] == '[');
}

}  // namespace

std::string dump_members(const ConfigMembers& members, const ConfigTree* sources) {
  Dumper dumper(sources);
  members(dumper);
  return std::move(dumper.out);
}

std::vector<FieldInfo> list_members(const ConfigMembers& members) {
  Lister lister;
  members(lister);
  return std::move(lister.out);
}

std::vector<FieldText> flatten_members(const ConfigMembers& members) {
  Flattener flattener;
  members(flattener);
  return std::move(flattener.out);
}

Json json_of_members(const ConfigMembers& members) {
  JsonVisitor visitor;
  members(visitor);
  return std::move(visitor.out);
}

std::uint64_t hash_members(const ConfigMembers& members, std::span<const std::string_view> skip) {
  std::string canonical;
  for (const auto& [path, text] : flatten_members(members)) {
    bool skipped = false;
    for (std::string_view prefix : skip) skipped = skipped || is_below(path, prefix);
    if (!skipped) canonical += cat(path, "=", text, "\n");
  }
  return xxh3(canonical);
}

}  // namespace sieve
