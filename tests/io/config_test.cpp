#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/rng.h"
#include "helpers.h"
#include "io/config_scalar.h"
#include "io/json.h"
#include "io/yaml.h"
#include "sample_config.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace {

SampleConfig bound(const std::string& text) {
  ConfigTree tree;
  tree.load_text(text, "f.yaml");
  SampleConfig config;
  tree.bind(config);
  return config;
}

std::string error_in(const std::string& text) {
  return error_of(Exit::config, [&] { bound(text); });
}

std::int64_t integer(std::string_view text) {
  std::int64_t value = -77;
  const std::string why = read_integer(text, value);
  if (!why.empty()) throw Error(Exit::config, why);
  return value;
}

}  // namespace

TEST_CASE("integers are read exactly or not at all") {
  CHECK(integer("0") == 0);
  CHECK(integer("-12") == -12);
  CHECK(integer("4096") == 4096);
  CHECK(integer("1e6") == 1000000);
  CHECK(integer("1E+3") == 1000);
  CHECK(integer("1.5e1") == 15);
  CHECK(integer("2.50e2") == 250);
  CHECK(integer("1200e-2") == 12);
  CHECK(integer("10B") == 10000000000);
  CHECK(integer("10G") == 10000000000);
  CHECK(integer("2k") == 2000);
  CHECK(integer("2K") == 2000);
  CHECK(integer("1.5M") == 1500000);
  CHECK(integer("3T") == 3000000000000);
  CHECK(integer("512Ki") == 524288);
  CHECK(integer("25Mi") == 26214400);
  CHECK(integer("0.5Gi") == 536870912);
  CHECK(integer("9223372036854775807") == INT64_MAX);
  CHECK(integer("0e999") == 0);
  for (const char* bad : {"",          "-",
                          "+5",        "abc",
                          "010",       "00",
                          "0x10",      "1_000",
                          "1,000",     "1.5",
                          "1e-3",      "1e",
                          "1e6k",      "5KB",
                          "5ki",       "5Ti",
                          " 5",        "5 ",
                          "--5",       "1e19",
                          "10000000T", "9223372036854775808",
                          "inf",       "nan",
                          "1e99999",   "12345678901234567890123456",
                          "true",      "5m"}) {
    INFO(bad);
    std::int64_t value = -77;
    CHECK(contains(read_integer(bad, value), "wants an integer"));
    CHECK(value == -77);
  }
  std::int64_t value;
  CHECK(read_integer("010", value) ==
        "wants an integer (4096, 1e6, 512Ki, 10B), got \"010\": leading zeros (some readers take them for octal)");
  CHECK(read_integer("1.5", value) == "wants an integer (4096, 1e6, 512Ki, 10B), got \"1.5\": not a whole number");
}

TEST_CASE("numbers, durations and booleans are strict") {
  double x = 0;
  for (const auto& [text, value] :
       {std::pair{"0.1", 0.1}, {"-3e-4", -3e-4}, {"10000", 1e4}, {".5", .5}, {"5.", 5.}, {"1e+3", 1e3}}) {
    CHECK(read_real(text, x).empty());
    CHECK(x == value);
  }
  for (const char* bad :
       {"", ".", "inf", "nan", ".inf", "-nan", "1e999", "1e-400", "0x1p3", "01.5", "1.5.2", "1e5x", "+1", "1 "}) {
    INFO(bad);
    CHECK(contains(read_real(bad, x), "wants a number"));
  }
  CHECK(contains(read_real("5M", x), "suffixes are for integers"));
  for (const auto& [text, seconds] : {std::pair{"90", 90.},
                                      {"90s", 90.},
                                      {"10m", 600.},
                                      {"11h50m", 42600.},
                                      {"1d", 86400.},
                                      {"1.5h", 5400.},
                                      {"0.25", .25},
                                      {"1d1s", 86401.}}) {
    CHECK(read_duration(text, x).empty());
    CHECK(x == seconds);
  }
  for (const char* bad : {"", "10", "m", "10x", "5m1h", "5m5m", "-5s", "1e3s", "10 m", "1h30"}) {
    INFO(bad);
    const bool fine = std::string_view(bad) == "10";
    CHECK(read_duration(bad, x).empty() == fine);
  }
  bool b = false;
  CHECK((read_boolean("true", b).empty() && b));
  CHECK((read_boolean("false", b).empty() && !b));
  CHECK(read_boolean("yes", b) == "wants true or false, got \"yes\" (write true)");
  CHECK(read_boolean("Off", b) == "wants true or false, got \"Off\" (write false)");
  CHECK(read_boolean("True", b) == "wants true or false, got \"True\" (write true)");
  CHECK(read_boolean("maybe", b) == "wants true or false, got \"maybe\"");
}

TEST_CASE("written values read back as the same bits") {
  CHECK(format_real(6e-4) == "0.0006");
  CHECK(format_real(1e-8) == "1e-8");
  CHECK(format_real(10000) == "10000");
  CHECK(format_real(1.5e300) == "1.5e300");
  CHECK(format_duration(42600) == "11h50m");
  CHECK(format_duration(600) == "10m");
  CHECK(format_duration(0.5) == "0.5s");
  CHECK(format_text("a/b*.h5") == "a/b*.h5");
  CHECK(format_text("No") == "\"No\"");
  CHECK(format_text("12") == "\"12\"");
  CHECK(format_text("exact", "exact") == "\"exact\"");
  const Philox rng{3, 14};
  for (std::uint64_t i = 0; i < 20000; ++i) {
    const std::uint64_t bits = rng.bits64(i);
    double value;
    std::memcpy(&value, &bits, sizeof value);
    if (!std::isfinite(value) || std::abs(value) < 1e-300) continue;  // subnormal texts are refused as underflow
    double back = 0;
    REQUIRE(read_real(format_real(value), back).empty());
    REQUIRE(std::memcmp(&back, &value, sizeof value) == 0);
    const double seconds = std::abs(std::floor(rng.uniform(i + 100000) * 1e9) / (i % 3 == 0 ? 1000 : 1));
    REQUIRE(read_duration(format_duration(seconds), back).empty());
    REQUIRE(back == seconds);
    const auto whole = static_cast<std::int64_t>(bits >> (i % 60 + 1));
    REQUIRE(integer(format_integer(whole)) == whole);
  }
}

TEST_CASE("any text survives the dump") {
  const Philox rng{5, 9};
  const std::string_view pieces[] = {
      "a", "\"", "\\", "\n", "\t", "#", ": ", "- ", "é",      "\x7f",   "\x01",   "\r", "{",    "]",   ",", "0", "~",
      "*", "&",  "!",  "%",  "@",  "`", "'",  " ",  "\u2028", "\u0085", "\ufeff", "😀",  "null", "yes", "|", ">"};
  for (std::uint64_t i = 0; i < 3000; ++i) {
    SampleConfig config;
    for (std::uint64_t j = 0; j < i % 7; ++j) config.name += pieces[rng.bits64(i * 8 + j) % std::size(pieces)];
    config.note = config.name;
    config.model.pattern = {config.name, "x" + config.name};
    ConfigTree tree;
    tree.load_text(dump_yaml(config), "dump");
    SampleConfig back;
    tree.bind(back);
    INFO(dump_yaml(config));
    REQUIRE(back.name == config.name);
    REQUIRE(back.note == config.note);
    REQUIRE(back.model.pattern == config.model.pattern);
  }
}

TEST_CASE("sources override each other in order and each value knows its own") {
  TempFolder folder;
  folder.put("base/tiny.yaml", "model: {layers: 3, kinds: {sk: {window: 8}}}\nname: base\nsteps: [1, 2]\n");
  folder.put("base/more.yaml", "extends: tiny.yaml\nlr: 0.5\n");
  const auto file = folder.put("run.yaml",
                               "extends: [base/more.yaml]\n"
                               "model:\n"
                               "  layers: 1e1\n"
                               "  kinds:\n"
                               "    sk: {type: light}\n"
                               "steps: [7]\n"
                               "data: [a/*.h5, {path: b, weight: 2}]\n"
                               "note: null\n"
                               "timeout:  11h50m\n");
  ConfigTree tree;
  tree.load(file);
  tree.overlay_environment(
      {{{"SIEVE_model__tied", "false"}, {"SIEVE_name", "env"}, {"SIEVE_HOME", "/x"}, {"PATH", "/bin"}}});
  tree.overlay({"name=cli", "betas=[0.5,0.25]", "model.kinds.new={window: 9}"});
  SampleConfig config;
  tree.bind(config);

  CHECK(config.model.layers == 10);
  CHECK_FALSE(config.model.tied);
  CHECK(config.model.kinds.size() == 3);
  CHECK(config.model.kinds["sk"].window == 8);
  CHECK(config.model.kinds["sk"].type == Shade::light);
  CHECK(config.model.kinds["new"].window == 9);
  CHECK(config.steps == std::vector<std::int64_t>{7});
  CHECK(config.lr == 0.5);
  CHECK(config.name == "cli");
  CHECK(config.betas == std::vector<double>{0.5, 0.25});
  REQUIRE(config.data.size() == 2);
  CHECK(config.data[0].path == "a/*.h5");
  CHECK(config.data[0].weight == 1);
  CHECK(config.data[1].weight == 2);
  CHECK(config.timeout == 42600);
  CHECK_FALSE(config.deterministic.has_value());

  const std::string run = file.string(), tiny = (folder / "base/tiny.yaml").string(),
                    more = (folder / "base/more.yaml").string();
  CHECK(tree.origin_of("model.layers").place() == run + ":3:3");
  CHECK(tree.origin_of("model.kinds.sk.window").place() == tiny + ":1:33");
  CHECK(tree.origin_of("lr").brief() == more + ":2");
  CHECK(tree.origin_of("name").place() == "command line");
  CHECK(tree.origin_of("model.tied").place() == "environment SIEVE_model__tied");
  CHECK(tree.origin_of("data[1].weight").place() == run + ":7:26");
  CHECK(tree.origin_of("schema").is_default());
  CHECK(tree.given("data[0]"));
  CHECK_FALSE(tree.given("data[2]"));
  CHECK_FALSE(tree.given("model.kinds.full"));
  REQUIRE(tree.files().size() == 3);
  CHECK(tree.files()[0] == folder / "base/tiny.yaml");
  CHECK(tree.files()[2] == file);

  CHECK(error_of(Exit::config, [&] { tree.fail_at("model.layers", "is odd"); }) ==
        run + ":3:3: error: model.layers: is odd");
  CHECK(error_of(Exit::config, [&] { tree.fail_at("model.kinds.sk.pool", "is small"); }) ==
        run + ":5:5: error: model.kinds.sk.pool: is small");
  CHECK(error_of(Exit::config, [&] { tree.fail_at("schema", "is old"); }) == run + ":1:1: error: schema: is old");
  tree.fail_all({});
  const std::pair<std::string, std::string> two[] = {{"name", "is taken"}, {"lr", "is high"}};
  CHECK(error_of(Exit::config, [&] { tree.fail_all(two); }) ==
        more + ":2:1: error: lr: is high\ncommand line: error: name: is taken");  // in the order of places

  const std::string dump = dump_yaml(config, tree);
  INFO(dump);
  auto with_source = [](std::string line, const std::string& source) {
    line.resize(std::max<std::size_t>(line.size(), 40), ' ');
    return line + "  # " + source + "\n";
  };
  CHECK(contains(dump, with_source("  layers: 10", run + ":3")));
  CHECK(contains(dump, with_source("      window: 8", tiny + ":1")));
  CHECK(contains(dump, with_source("  tied: false", "environment SIEVE_model__tied")));
  CHECK(contains(dump, with_source("  - path: a/*.h5", run + ":7")));
  CHECK(contains(dump, with_source("    weight: 1", "default")));
  CHECK(contains(dump, with_source("timeout: 11h50m", run + ":9")));
  CHECK(contains(dump, with_source("slope: auto", "default")));
  CHECK(contains(dump, with_source("note: null", run + ":8")));

  ConfigTree again;
  again.load_text(dump, "dump");
  SampleConfig back;
  again.bind(back);
  CHECK(flatten_config(back) == flatten_config(config));
  CHECK(config_hash(back) == config_hash(config));
}

TEST_CASE("unknown keys name their place and the nearest key") {
  CHECK(error_in("model:\n  kinds:\n    sk: {type: dark,\n    windwo: 5}\n") ==
        "f.yaml:4:5: error: model.kinds.sk.windwo: unknown key (did you mean \"window\"?)\n  known keys here: type, "
        "window, pool");
  CHECK(
      error_in("window: 5") ==
      "f.yaml:1:1: error: window: unknown key (there is model.kinds.*.window)\n"
      "  known keys here: schema, model, data, lr, timeout, name, deterministic, slope, patience, note, betas, steps");
  CHECK(contains(error_in("data: [{path: x}, {paht: y}]"),
                 "f.yaml:1:20: error: data[1].paht: unknown key (did you mean \"path\"?)"));
  CHECK(contains(error_in("frobnicate: 5"), "f.yaml:1:1: error: frobnicate: unknown key\n"));
}

TEST_CASE("every kind of wrong value is refused with its place") {
  auto only = [](const std::string& text, const std::string& message) {
    INFO(text);
    CHECK(error_in(text) == message);
  };
  only("lr: fast", "f.yaml:1:1: error: lr: wants a number (0.1, 3e-4), got \"fast\"");
  only("lr: [1]", "f.yaml:1:1: error: lr: wants a number (0.1, 3e-4), got a list");
  only("lr: \"0.1\"", "f.yaml:1:1: error: lr: wants a number (0.1, 3e-4), got the text \"0.1\"");
  only("lr:", "f.yaml:1:1: error: lr: has no value");
  only("lr: -1", "f.yaml:1:1: error: lr: must be at least 0, got -1");
  only("schema: 2", "f.yaml:1:1: error: schema: must be at most 1, got 2");
  only("name:", "f.yaml:1:1: error: name: has no value (write \"\" for an empty text)");
  only("name: {a: 1}", "f.yaml:1:1: error: name: wants a text, got a map");
  only("deterministic: yes",
       "f.yaml:1:1: error: deterministic: wants true or false, got \"yes\" (write true) (or auto)");
  only("slope: null", "f.yaml:1:1: error: slope: has no value (or auto)");
  only("patience: auto",
       "f.yaml:1:1: error: patience: wants a duration (90, 90s, 10m, 11h50m), got \"auto\" (or null)");
  only("timeout: 0.5", "f.yaml:1:1: error: timeout: must be at least 1, got 0.5");
  only("model: 3",
       "f.yaml:1:1: error: model: wants a map of keys, got a plain value\n  known keys here: layers, tied, kinds, "
       "pattern");
  only("model: {kinds: [a]}", "f.yaml:1:9: error: model.kinds: wants a map of names, got a list");
  only("model: {kinds: {a: dark}}",
       "f.yaml:1:17: error: model.kinds.a: wants a map of keys, got a plain value\n  known keys here: type, window, "
       "pool");
  only("model: {kinds: {a: {type: lihgt}}}",
       "f.yaml:1:21: error: model.kinds.a.type: wants one of dark, light, got \"lihgt\" (did you mean \"light\"?)");
  only("model: {kinds: {a: {type: [dark]}}}",
       "f.yaml:1:21: error: model.kinds.a.type: wants one of dark, light, got a list");
  only("model: {kinds: {a: {pool: all}}}",
       "f.yaml:1:21: error: model.kinds.a.pool: wants an integer (4096, 1e6, 512Ki, 10B), got \"all\" (or exact)");
  only("model: {pattern: {a: b}}", "f.yaml:1:9: error: model.pattern: wants a list or a text, got a map");
  only("model: {pattern: }", "f.yaml:1:9: error: model.pattern: wants a list or a text, got nothing");
  CHECK(bound("model: {pattern: sk}").model.pattern == std::vector<std::string>{"sk"});
  only("model: {pattern: [full, [a]]}", "f.yaml:1:25: error: model.pattern[1]: wants a text, got a list");
  only("betas: [0.5,\n  2]", "f.yaml:2:3: error: betas[1]: must be at most 1, got 2");
  only("steps: [1, 2.5]",
       "f.yaml:1:12: error: steps[1]: wants an integer (4096, 1e6, 512Ki, 10B), got \"2.5\": not a whole number");
  only("data: {path: x}", "f.yaml:1:1: error: data: wants a list or a path, got a map");
  only("data: [[x]]", "f.yaml:1:8: error: data[0]: wants a map of keys, got a list\n  known keys here: path, weight");
  // words that look like other types are texts where a text is wanted
  CHECK(bound("name: 12").name == "12");
  CHECK(bound("name: no").name == "no");
  CHECK(bound("note: \"null\"").note == "null");
  CHECK_FALSE(bound("note: ~").note.has_value());
  CHECK(bound("data: a/*.h5").data.at(0).path == "a/*.h5");
  CHECK(bound("model:\nlr: 1").model.layers == 2);
}

TEST_CASE("what YAML allows and a configuration does not") {
  auto only = [](const std::string& text, const std::string& message) {
    INFO(text);
    CHECK(error_in(text) == message);
  };
  only("lr: 1\nmodel:\n  layers: 1\n  layers: 2\n", "f.yaml:4:3: error: model.layers: doubled key (first on line 3)");
  only("lr: &a 1",
       "f.yaml:1:5: error: lr: anchors (&), aliases (*) and merge keys (<<) are not supported: write the values out, "
       "or use extends");
  CHECK(contains(error_in("model: &m {layers: 2}\ndata: [a, *m]"),
                 "f.yaml:2:11: error: data[1]: anchors (&), aliases (*) and merge keys (<<) are not supported"));
  only("model:\n  <<: {layers: 3}\n",
       "f.yaml:2:3: error: model: anchors (&), aliases (*) and merge keys (<<) are not supported: write the values "
       "out, or use extends");
  only("lr: !!float 1", "f.yaml:1:5: error: lr: tags (tag:yaml.org,2002:float) are not supported");
  only("1: 2", "f.yaml:1:1: error: \"1\" as a key: keys are names (a letter, then letters, digits, \"_\" and \"-\")");
  only("model:\n  ? [a, b]\n  : 3\n",
       "f.yaml:2:5: error: model: a list as a key: keys are names (a letter, then letters, digits, \"_\" and \"-\")");
  only("? {a: 1}\n: {b: [1]}\nlr: 1\n",
       "f.yaml:1:3: error: a map as a key: keys are names (a letter, then letters, digits, \"_\" and \"-\")");
  only("~: 3", "f.yaml:1:1: error: an empty key: keys are names (a letter, then letters, digits, \"_\" and \"-\")");
  only(
      "model.layers: 3",
      "f.yaml:1:1: error: \"model.layers\" as a key: keys are names (a letter, then letters, digits, \"_\" and \"-\")");
  only("lr: 1\n---\nlr: 2\n", "f.yaml:2:1: error: a second document (\"---\"): one file is one document");
  only("model:\n\tlayers: 3\n", "f.yaml:2:1: error: a tab in the indentation: use spaces");
  only("lr: 1\nname: \"\xff\"\n", "f.yaml:2:8: error: not UTF-8 text");
  only(std::string("lr: 1\0", 6), "f.yaml:1:6: error: not UTF-8 text");
  only("model: {layers: 3\nlr: 1\n", "f.yaml:2:3: error: YAML syntax: end of map flow not found");
  only("data: *.h5",
       "f.yaml:1:7: error: YAML syntax: the referenced anchor is not defined (values that begin with \"*\" or \"&\" "
       "must be quoted)");
  only("[1, 2]", "f.yaml:1:1: error: a configuration is a map of keys, not a list");
  only("just words", "f.yaml:1:1: error: a configuration is a map of keys, not a plain value");
  only("extends: x.yaml", "f.yaml:1:1: error: extends: only files can extend files");
  CHECK(contains(error_in("name: " + std::string(40, '[') + std::string(40, ']')), "nested deeper than 32 levels"));
  CHECK(error_in("# only a comment\n").empty());
  CHECK(error_in("").empty());
  CHECK(error_in("---\nlr: 1\n...\n").empty());
  CHECK(error_in("lr: 1\r\nname: x\r\n").empty());
}

TEST_CASE("all problems of all sources come at once, in the order of their places") {
  ConfigTree tree;
  tree.load_text("steps: 3\nlr: x\nmodel: {tied: maybe, tied: true}\nlrr: 2\n", "f.yaml");
  tree.overlay({"timeout=1x", "lrx=3"});
  SampleConfig config;
  const std::string text = error_of(Exit::config, [&] { tree.bind(config); });
  const char* wanted[] = {"f.yaml:1:1: error: steps: wants a list, got a plain value (write [3])",
                          "\nf.yaml:2:1: error: lr: wants a number",
                          "\nf.yaml:3:9: error: model.tied: wants true or false, got \"maybe\"",
                          "\nf.yaml:3:22: error: model.tied: doubled key (first on line 3)",
                          "\nf.yaml:4:1: error: lrr: unknown key (did you mean \"lr\"?)",
                          "\ncommand line: error: timeout: wants a duration",
                          "\ncommand line: error: lrx: unknown key"};
  std::size_t at = 0;
  for (const char* part : wanted) {
    INFO(part << "\nin\n" << text);
    const std::size_t found = text.find(part);
    REQUIRE(found != std::string::npos);
    CHECK(found >= at);
    at = found;
  }
  std::string many;
  for (int i = 0; i < 25; ++i) many += "unknown" + std::to_string(i) + ": 1\n";
  CHECK(contains(error_in(many), "\n... and 5 more"));
}

TEST_CASE("an empty group takes nothing away from what it overrides") {
  ConfigTree tree;
  tree.load_text("model: {layers: 3}\nlr: 0.5\n", "a");
  tree.load_text("model:\n  # layers: 5\n", "b");
  SampleConfig config;
  tree.bind(config);
  CHECK(config.model.layers == 3);
  CHECK(config.lr == 0.5);
}

TEST_CASE("extends follows files and refuses circles") {
  TempFolder folder;
  folder.put("a.yaml", "extends: sub/b.yaml\n");
  folder.put("sub/b.yaml", "lr: 1\nextends: [../a.yaml]\n");
  folder.put("lost.yaml", "lr: 1\nextends:\n  - nowhere.yaml\n");
  folder.put("typed.yaml", "extends: {a: b}\n");
  ConfigTree tree;
  CHECK(error_of(Exit::config, [&] { tree.load(folder / "a.yaml"); }) ==
        (folder / "sub/b.yaml").string() + ":2:11: error: extends: " + (folder / "a.yaml").string() +
            " extends itself");
  CHECK(error_of(Exit::config, [&] { tree.load(folder / "lost.yaml"); }) ==
        (folder / "lost.yaml").string() + ":3:5: error: extends: there is no file " +
            (folder / "nowhere.yaml").string());
  CHECK(error_of(Exit::config, [&] { tree.load(folder / "typed.yaml"); }) ==
        (folder / "typed.yaml").string() + ":1:1: error: extends: wants a path or a list of paths");
  CHECK(contains(error_of(Exit::config, [&] { tree.load(folder / "none.yaml"); }),
                 "cannot open " + (folder / "none.yaml").string()));
}

TEST_CASE("command line and environment errors name their source") {
  auto overlay_error = [](const std::string& assignment) {
    return error_of(Exit::config, [&] {
      ConfigTree tree;
      tree.overlay({assignment});
      SampleConfig config;
      tree.bind(config);
    });
  };
  CHECK(overlay_error("lr") == "command line: error: \"lr\" is not of the form key=value");
  CHECK(overlay_error("=3") == "command line: error: \"=3\" is not of the form key=value");
  CHECK(overlay_error("model..layers=3") == "command line: error: model..layers: not a dotted path of keys");
  CHECK(overlay_error("model.=3") == "command line: error: model.: not a dotted path of keys");
  CHECK(overlay_error("data[0].path=3") ==
        "command line: error: data[0].path: elements of a list cannot be set one by one: give the whole list");
  CHECK(overlay_error("extends=a") == "command line: error: extends: only files can extend files");
  CHECK(overlay_error("betas=[1,") == "command line: error: betas: YAML syntax: end of sequence flow not found");
  CHECK(overlay_error("model={layers: 1, layers: 2}") == "command line: error: model.layers: doubled key");
  CHECK(overlay_error("model.layers=0") == "command line: error: model.layers: must be at least 1, got 0");
  CHECK(contains(overlay_error("name="), "command line: error: name: has no value"));
  CHECK(overlay_error("note=").empty());
  ConfigTree tree;
  tree.overlay_environment({{{"SIEVE_model__layres", "3"}}});
  SampleConfig config;
  CHECK(contains(error_of(Exit::config, [&] { tree.bind(config); }),
                 "environment SIEVE_model__layres: error: model.layres: unknown key (did you mean \"layers\"?)"));
  ::setenv("SIEVE_model__layers", "5", 1);
  ConfigTree real;
  real.overlay_environment();
  ::unsetenv("SIEVE_model__layers");
  real.bind(config);
  CHECK(config.model.layers == 5);
}

TEST_CASE("the field list feeds documentation, JSON, differences and the hash") {
  const std::vector<FieldInfo> fields = list_fields(SampleConfig{});
  auto find = [&](std::string_view path) {
    for (const FieldInfo& f : fields) {
      if (f.path == path) return f;
    }
    throw Error(Exit::internal, cat("no field ", path));
  };
  CHECK(fields.front().path == "schema");
  CHECK(find("model.kinds.*.window").default_text == "4");
  CHECK(find("model.kinds.*.window").max == 4096);
  CHECK(find("model.kinds.*.type").choices == std::vector<std::string>{"dark", "light"});
  CHECK(find("model.kinds.*.pool").none == "exact");
  CHECK(find("data[].weight").type == "number");
  CHECK(find("data").type == "list of groups");
  CHECK_FALSE(find("model").is_leaf);
  CHECK(find("betas").default_text == "[0.9, 0.95]");
  CHECK(find("lr").doc == "step size");

  SampleConfig config = bound("data: [a, b]\nsteps: [3]\nslope: 0.5\n");
  const Json json = config_json(config);
  CHECK(json["model"]["kinds"]["full"]["type"] == "dark");
  CHECK(json["data"][1]["path"] == "b");
  CHECK(json["steps"] == Json::array({3}));
  CHECK(json["deterministic"].is_null());
  CHECK(json["slope"] == 0.5);

  SampleConfig other = config;
  CHECK(config_hash(config) == config_hash(other));
  other.data[1].weight = 3;
  CHECK(config_hash(config) != config_hash(other));
  const std::string_view skip[] = {"data", "model.kinds"};
  CHECK(config_hash(config, skip) == config_hash(other, skip));
  other.model.layers = 9;
  CHECK(config_hash(config, skip) != config_hash(other, skip));
  const auto a = flatten_config(config), b = flatten_config(other);
  REQUIRE(a.size() == b.size());
  std::vector<std::string> changed;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(a[i] == b[i])) changed.push_back(a[i].path + "=" + b[i].text);
  }
  CHECK(changed == std::vector<std::string>{"model.layers=9", "data[1].weight=3"});
}
