// The one place that knows yaml-cpp. Its node API keeps doubled keys, resolves `<<` to nothing and guesses types, so
// the tree is built from its parser's events, which carry places and say which scalars were quoted.
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <sstream>

#include "core/error.h"
#include "io/config_node.h"
#include "io/config_scalar.h"

namespace sieve {
namespace {

constexpr std::size_t kMaxDepth = 32;

bool is_key(std::string_view key) {
  auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
  if (key.empty() || !letter(key[0])) return false;
  return std::all_of(key.begin(), key.end(), [&](char c) { return letter(c) || (c >= '0' && c <= '9') || c == '-'; });
}

class TreeBuilder final : public YAML::EventHandler {
 public:
  TreeBuilder(const ConfigOrigin& source, const std::string& path, std::vector<ConfigProblem>& problems)
      : source_(source), path_(path), problems_(problems) {}

  ConfigNode take() { return std::move(root_); }
  int documents() const { return documents_; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1) throw_at(mark, "a second document (\"---\"): one file is one document");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    check(mark, "", anchor);
    if (expects_key()) return bad_key(mark, "an empty key");
    place(mark).kind = ConfigNode::Kind::null;
    value_done();
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    add(mark, kNoAnchors);
    if (expects_key()) return open_slot(discard());
    place(mark).kind = ConfigNode::Kind::null;
    value_done();
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    check(mark, tag, anchor);
    if (expects_key()) return key(mark, value);
    ConfigNode& node = place(mark);
    node.kind = tag == "!" ? ConfigNode::Kind::quoted : ConfigNode::Kind::plain;
    node.text = value;
    value_done();
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    check(mark, tag, anchor);
    open(mark, ConfigNode::Kind::list, "a list as a key");
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    check(mark, tag, anchor);
    open(mark, ConfigNode::Kind::map, "a map as a key");
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

 private:
  static constexpr std::string_view kNoAnchors =
      "anchors (&), aliases (*) and merge keys (<<) are not supported: write the values out, or use extends";
  struct Frame {
    ConfigNode* node;
    ConfigNode* slot = nullptr;  // of a map: where the value of the key just read goes; null: a key comes next
    bool is_key = false;         // this whole container stands where a key should
    std::string name;            // of the slot, for dotted paths
  };

  ConfigOrigin origin(const YAML::Mark& mark) const {
    ConfigOrigin out = source_;
    if (source_.line != 0) out.line = mark.line + 1, out.column = mark.column + 1;
    return out;
  }
  std::string path() const {
    std::string out = path_;
    for (std::size_t i = 0; i < open_.size(); ++i) {
      const Frame& frame = open_[i];
      if (frame.node->kind == ConfigNode::Kind::list) {
        // Of outer lists the last item is open; the innermost one is asked before its next item is made.
        out += cat("[", frame.node->items.size() - (i + 1 < open_.size() ? 1 : 0), "]");
      } else if (!frame.name.empty()) {
        (out += out.empty() ? "" : ".") += frame.name;
      }
    }
    return out;
  }
  void add(const YAML::Mark& mark, std::string_view message) {
    problems_.push_back({origin(mark), path(), std::string(message)});
  }
  [[noreturn]] void throw_at(const YAML::Mark& mark, std::string_view message) {
    throw Error(Exit::config, problem_text({origin(mark), path_, std::string(message)}));
  }
  void check(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) add(mark, kNoAnchors);
    if (!tag.empty() && tag != "?" && tag != "!") add(mark, cat("tags (", tag, ") are not supported"));
  }

  bool expects_key() const {
    return !open_.empty() && open_.back().node->kind == ConfigNode::Kind::map && open_.back().slot == nullptr;
  }
  ConfigNode* discard() { return &discarded_.emplace_back(); }
  void open_slot(ConfigNode* slot) { open_.back().slot = slot; }

  void bad_key(const YAML::Mark& mark, std::string_view what) {
    add(mark, cat(what, ": keys are names (a letter, then letters, digits, \"_\" and \"-\")"));
    open_slot(discard());
  }
  void key(const YAML::Mark& mark, const std::string& name) {
    Frame& frame = open_.back();
    frame.name.clear();  // messages about the key itself give the path of its map, then name it
    if (name == "<<") {
      add(mark, kNoAnchors);
      return open_slot(discard());
    }
    if (!is_key(name)) return bad_key(mark, cat("\"", name.substr(0, 80), "\" as a key"));
    frame.name = name;
    if (const ConfigNode* first = frame.node->find(name)) {
      add(mark, first->origin.line == 0 ? std::string("doubled key")
                                        : cat("doubled key (first on line ", first->origin.line, ")"));
      return open_slot(discard());
    }
    auto& member = frame.node->members.emplace_back(name, ConfigNode{});
    member.second.origin = origin(mark);
    open_slot(&member.second);
  }

  // The node that the next value fills. Map members keep the place of their key.
  ConfigNode& place(const YAML::Mark& mark) {
    if (open_.empty()) {
      root_.origin = origin(mark);
      return root_;
    }
    Frame& frame = open_.back();
    if (frame.node->kind == ConfigNode::Kind::map) return *frame.slot;
    ConfigNode& item = frame.node->items.emplace_back();
    item.origin = origin(mark);
    return item;
  }
  void value_done() {
    if (!open_.empty()) open_.back().slot = nullptr;
  }
  void open(const YAML::Mark& mark, ConfigNode::Kind kind, std::string_view as_key) {
    if (open_.size() >= kMaxDepth) throw_at(mark, cat("nested deeper than ", kMaxDepth, " levels"));
    const bool is_key = expects_key();
    if (is_key) bad_key(mark, as_key);
    ConfigNode& node = is_key ? *discard() : place(mark);
    node.kind = kind;
    open_.push_back({&node, nullptr, is_key, {}});  // parents do not grow while a child is open: the pointers hold
  }
  void close() {
    const bool was_key = open_.back().is_key;
    open_.pop_back();
    if (!was_key) value_done();  // a container in a key's place leaves its (discarded) value still to come
  }

  const ConfigOrigin& source_;
  const std::string& path_;
  std::vector<ConfigProblem>& problems_;
  ConfigNode root_;
  std::deque<ConfigNode> discarded_;
  std::vector<Frame> open_;
  int documents_ = 0;
};

// What yaml-cpp would read as something, or complain about without a usable place.
void check_bytes(std::string_view text, const ConfigOrigin& source, const std::string& path) {
  auto throw_here = [&](std::size_t at, const char* message) {
    ConfigOrigin origin = source;
    const std::string_view before = text.substr(0, at);
    const std::size_t line_begin = before.rfind('\n') + 1;  // npos + 1 == 0
    if (source.line != 0) {
      origin.line = static_cast<int>(std::count(before.begin(), before.end(), '\n')) + 1;
      origin.column = static_cast<int>(at - line_begin) + 1;
    }
    throw Error(Exit::config, problem_text({origin, path, message}));
  };
  if (const std::size_t bad = find_invalid_utf8(text); bad != std::string_view::npos) throw_here(bad, "not UTF-8 text");
  bool indentation = true;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (indentation && text[i] == '\t') throw_here(i, "a tab in the indentation: use spaces");
    indentation = text[i] == '\n' || (indentation && text[i] == ' ');
  }
}

}  // namespace

ConfigNode parse_yaml(std::string_view text, const ConfigOrigin& source, const std::string& path,
                      std::vector<ConfigProblem>& problems) {
  check_bytes(text, source, path);
  TreeBuilder builder(source, path, problems);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {}
  } catch (const YAML::Exception& e) {
    ConfigOrigin origin = source;
    if (source.line != 0 && !e.mark.is_null()) origin.line = e.mark.line + 1, origin.column = e.mark.column + 1;
    const bool alias = e.msg.find("anchor") != std::string::npos;
    // Newer versions of the library name the anchor, which repeats what stands at the place shown.
    const std::string what = e.msg.substr(0, e.msg.find(": "));
    throw Error(Exit::config,
                problem_text({origin, path,
                              cat("YAML syntax: ", alias ? what : e.msg,
                                  alias ? " (values that begin with \"*\" or \"&\" must be quoted)" : "")}));
  }
  ConfigNode root = builder.take();
  if (builder.documents() == 0) root.origin = source;
  return root;
}

}  // namespace sieve
