// Random damage to valid input: every parser must either succeed or throw sieve::Error. Crashes, hangs, huge
// allocations and other exceptions fail (run under the sanitizers too).
#include <algorithm>
#include <cstring>

#include "core/rng.h"
#include "helpers.h"
#include "io/archive.h"
#include "io/file.h"
#include "io/hdf5.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/text_input.h"
#include "io/yaml.h"
#include "sample_config.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

// HDF5 believes sizes in its metadata and asks malloc for them; it handles the refusal that malloc gives outside of
// AddressSanitizer.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
// HDF5 1.10.8 forgets a header whose checksum is wrong. Handles that we forgot would not show here either way: its own
// tables keep hold of them.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }

namespace {

// One to four damages: a changed bit or byte, a cut, a doubled piece, an inserted token.
std::string mutate(std::string text, const Philox& rng, std::uint64_t round, std::span<const std::string_view> tokens) {
  std::uint64_t counter = round * 64;
  auto below = [&](std::uint64_t n) {
    return static_cast<std::size_t>(rng.bits64(counter++) % std::max<std::uint64_t>(n, 1));
  };
  for (std::size_t times = 1 + below(4); times > 0 && !text.empty(); --times) {
    const std::size_t at = below(text.size());
    switch (below(6)) {
      case 0: text[at] = static_cast<char>(text[at] ^ (1 << below(8))); break;
      case 1: text[at] = static_cast<char>(below(256)); break;
      case 2: text.erase(at, 1 + below(8)); break;
      case 3: text.insert(at, text.substr(below(text.size()), below(40))); break;
      case 4: text.insert(at, tokens[below(tokens.size())]); break;
      case 5: text.resize(at); break;
    }
  }
  return text;
}

struct Counts {
  int accepted = 0, refused = 0;
};

template <class F>
Counts survive(const std::string& seed_text, std::span<const std::string_view> tokens, std::uint64_t rounds,
               F&& parse) {
  Counts counts;
  const Philox rng{seed_text.size(), 77};
  for (std::uint64_t round = 0; round < rounds; ++round) {
    const std::string text = mutate(seed_text, rng, round, tokens);
    INFO("round " << round);
    try {
      parse(text);
      ++counts.accepted;
    } catch (const Error& e) {
      REQUIRE((e.code() == Exit::data || e.code() == Exit::config));
      ++counts.refused;
    }
  }
  return counts;
}

}  // namespace

TEST_CASE("damaged YAML is read or refused") {
  const std::string text =
      "# a run\nschema: 1\nmodel:\n  layers: 12\n  tied: true\n  kinds:\n    sk: {type: light, window: 5, pool: "
      "exact}\n"
      "    local:\n      window: 1e2\n  pattern: [sk, local, \"full\"]\ndata:\n  - path: a/*.h5\n    weight: 0.5\n  - "
      "b\n"
      "lr: 6e-4\ntimeout: 1h30m\nname: 'it''s'\nnote: |\n  two\n  lines\nbetas: [0.9,\n  0.95]\nslope: auto\n";
  const std::string_view tokens[] = {
      "{",      "}", "[",        "]",        ": ",    "- ", "\n",    "\n  ",        "&a ", "*a",   "<<: ",
      "!!str ", "|", ">-\n",     "\"",       "'",     "? ", "---\n", "%YAML 1.2\n", "\t",  "\xff", "\xef\xbb\xbf",
      "#",      ",", "{{{{{{{{", "[[[[[[[[", "1e400", "\\x"};
  const Counts counts = survive(text, tokens, 20000, [](const std::string& damaged) {
    ConfigTree tree;
    tree.load_text(damaged, "f");
    SampleConfig config;
    tree.bind(config);
    // What was accepted must be writable and read back the same.
    ConfigTree again;
    again.load_text(dump_yaml(config, tree), "dump");
    SampleConfig back;
    again.bind(back);
    REQUIRE(flatten_config(back) == flatten_config(config));
  });
  CHECK(counts.accepted > 100);
  CHECK(counts.refused > 1000);
}

TEST_CASE("damaged JSON is read or refused") {
  const std::string text =
      R"({"name": "x\u00e9\n", "list": [1, -2.5e-3, true, null, {"a": {}}], "big": 18446744073709551615, "é": ""})";
  const std::string_view tokens[] = {"{",       "}",     "[", "]", "\"",   ",",           ":",       "\\u",
                                     "\\ud800", "1e999", "-", "0", "\xff", "\"list\":1,", "[[[[[[[["};
  const Counts counts = survive(text, tokens, 20000, [](const std::string& damaged) {
    const Json value = parse_json(damaged, "f");
    REQUIRE(parse_json(json_text(value), "again") == value);
  });
  CHECK(counts.accepted > 100);
  CHECK(counts.refused > 1000);
}

TEST_CASE("damaged safetensors are read or refused") {
  TempFolder folder(true);
  TensorMap tensors{{"a", full({2, 3}, 1, DType::f32)},
                    {"b", full({5}, 2, DType::bf16)},
                    {"c", zeros({0, 4}, DType::u8)},
                    {"d", full({}, 3, DType::f64)}};
  write_safetensors(folder / "good", tensors, {{"k", "v"}});
  const std::string bytes = read_file(folder / "good", 10000);
  const std::string_view tokens[] = {
      "{",  "}",   "[",     "]", "9223372036854775807", "18446744073709551615", "4294967296,", "-1",
      "0,", "F32", "\"a\"", " "};
  const Counts counts = survive(bytes, tokens, 4000, [&](const std::string& damaged) {
    const auto path = folder.put("bad", damaged);
    const SafetensorsFile file(path);
    for (const SafetensorsEntry& e : file.entries()) {
      try {
        static_cast<void>(file.read(e.name));
      } catch (const Error& error) { REQUIRE(error.code() == Exit::data); }
    }
  });
  CHECK(counts.accepted > 50);
  CHECK(counts.refused > 500);
}

TEST_CASE("damaged packed text is read or refused") {
  TempFolder folder(true);
  const std::string_view tokens[] = {std::string_view("\0\0\0\0", 4), "\xff\xff\xff\xff", "\x1f\x8b\x08",
                                     "\x28\xb5\x2f\xfd"};
  for (const char* name : {"small.txt.gz", "small.txt.zst"}) {
    const std::string bytes = read_file(std::string(SIEVE_GOLDEN_DIR) + "/" + name, 10000);
    const Counts counts = survive(bytes, tokens, 1500, [&](const std::string& damaged) {
      TextReader reader(folder.put("bad", damaged));
      std::vector<char> out(997);
      std::uint64_t total = 0;
      while (const std::size_t n = reader.read(out)) {
        total += n;
        if (total > (1u << 26)) break;  // a damaged length may repeat a byte for long
      }
    });
    CHECK(counts.refused > 200);
  }
}

TEST_CASE("damaged HDF5 files are read or refused") {
  TempFolder folder(true);
  {
    Hdf5File file = Hdf5File::create(folder / "good");
    std::vector<std::uint16_t> tokens(300);
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::uint16_t>(i);
    file.create_dataset("tokens", H5Type::u16, 300).write<std::uint16_t>(0, tokens);
    file.set_attribute("tokenizer", "abc");
    file.set_attribute("version", 1);
    file.close();
  }
  const std::string bytes = read_file(folder / "good", 1 << 20);
  const std::string_view tokens[] = {std::string_view("\0\0\0\0", 4), "\xff\xff\xff\xff\xff\xff\xff\xff", "TREE",
                                     "HEAP"};
  survive(bytes, tokens, 400, [&](const std::string& damaged) {
    const Hdf5File file = Hdf5File::open(folder.put("bad", damaged));
    const Hdf5Dataset tokens_set = file.dataset("tokens");
    if (tokens_set.size() < 1000000) static_cast<void>(tokens_set.read_all<std::uint16_t>());
    static_cast<void>(file.text_attribute("tokenizer"));
    static_cast<void>(file.integer_attribute("version"));
  });
}

TEST_CASE("damaged manifests are read or refused") {
  TempFolder folder(true);
  ArchiveWriter writer(folder.path(), "good");
  writer.write("a.txt", "hello");
  writer.write("b.txt", "");
  writer.commit();
  const std::string bytes = read_file(folder / "good/manifest.json", 10000);
  const std::string_view tokens[] = {"\"..\"", "/", "-1", "18446744073709551615", "[", "]", "{}", "null"};
  const Counts counts = survive(bytes, tokens, 2000, [&](const std::string& damaged) {
    folder.put("good/manifest.json", damaged);
    ArchiveReader reader(folder / "good");
    for (const ArchiveFile& f : reader.report().files) REQUIRE((f.name == "a.txt" || f.name == "b.txt"));
  });
  CHECK(counts.refused > 1000);
}
