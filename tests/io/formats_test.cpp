#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "helpers.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "support/catch.h"
#include "support/compare.h"

using namespace sieve;
using namespace sieve::test;

namespace {

std::string length_prefix(std::uint64_t n) {
  std::string out(8, '\0');
  std::memcpy(out.data(), &n, 8);
  return out;
}
std::string tensors_file(const std::string& header, const std::string& data = "") {
  return length_prefix(header.size()) + header + data;
}

std::string iota_values(const Tensor& t) {
  std::string out;
  for (double v : values_of(t)) out += std::to_string(static_cast<int>(v)) + " ";
  return out;
}

}  // namespace

TEST_CASE("JSON is strict and errors name the byte") {
  auto error = [](const std::string& text) { return error_of(Exit::data, [&] { parse_json(text, "f.json"); }); };
  CHECK(error("{\"a\": 1, \"b\": {\"c\": 2, \"c\": 3}}") == "[json] f.json: byte 26: doubled key \"c\" in b");
  CHECK(error("{\"a\": 1,}") ==
        "[json] f.json: byte 9: parse error at line 1, column 9: syntax error while parsing object key - unexpected "
        "'}'; expected string literal");
  CHECK(contains(error("[1, 2"), "byte 6"));
  CHECK(contains(error("{} {}"), "byte 4"));
  CHECK(contains(error("[1e999]"), "number overflow"));
  CHECK(contains(error("[01]"), "byte 3"));
  CHECK(contains(error("[NaN]"), "byte 2"));
  CHECK(contains(error(""), "unexpected end of input"));
  CHECK(contains(error("\"\xff\""), "ill-formed UTF-8"));
  CHECK(contains(error("// x\n1"), "byte 1"));
  CHECK(contains(error(std::string(100000, '[')), "nested deeper than 64 levels"));
  CHECK(error_of(Exit::config, [] { parse_json("{", "x", {.code = Exit::config}); }).substr(0, 7) == "[json] ");
  const Json value =
      parse_json(" {\"a\": [1, -2, 2.5, \"x\\u00e9\", true, null, {}], \"big\": 18446744073709551615} ", "f.json");
  CHECK(value["a"][3] == "xé");
  CHECK(value["a"].size() == 7);

  CHECK(get_json<std::uint64_t>(value, "big", "f.json") == std::numeric_limits<std::uint64_t>::max());
  CHECK(error_of(Exit::data, [&] { get_json<std::int64_t>(value, "big", "f.json"); }) ==
        "[json] f.json: \"big\" must be an integer, not 18446744073709551615");
  CHECK(error_of(Exit::data, [&] { get_json<std::string>(value, "a", "f.json"); }) ==
        "[json] f.json: \"a\" must be a text, not array");
  CHECK(error_of(Exit::data, [&] { get_json<bool>(value, "nope", "f.json"); }) == "[json] f.json: \"nope\" is missing");
  const Json numbers = {{"half", 0.5}, {"minus", -1}};
  CHECK(get_json<double>(numbers, "minus", "x") == -1);
  CHECK(contains(error_of(Exit::data, [&] { get_json<std::int64_t>(numbers, "half", "x"); }), "not 0.5"));
  CHECK(contains(error_of(Exit::data, [&] { get_json<std::uint64_t>(numbers, "minus", "x"); }), "at least 0, not -1"));
}

TEST_CASE("files are replaced whole and limits hold") {
  TempFolder folder;
  const auto path = folder / "x.json";
  write_json(path, {{"b", 1}, {"a", {1, 2}}, {"nan", std::numeric_limits<double>::quiet_NaN()}});
  CHECK(read_file(path, 1000) == "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": 1,\n  \"nan\": null\n}\n");
  write_file_atomic(path, "{}");
  CHECK(read_json(path) == Json::object());
  CHECK(error_of(Exit::data, [&] { read_file(path, 1); }) ==
        "[file] " + path.string() + " has 2 bytes, more than the 1 allowed here");
  CHECK(contains(error_of(Exit::data, [&] { read_file(folder.path(), 10); }), "is not a regular file"));
  CHECK(contains(error_of(Exit::data, [&] { write_file_atomic(folder / "no/such/x", "a"); }), "cannot create"));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);  // no temporary stays

  CHECK(hex64(xxh3("")) == "2d06800538d394c2");  // of the XXH3 specification's test vectors
  folder.put("big", std::string(3 << 20, 'q'));
  CHECK(xxh3_file(folder / "big") == xxh3(std::string(3 << 20, 'q')));
  CHECK(human_bytes(0) == "0 B");
  CHECK(human_bytes(1536) == "1.5 KiB");
  std::byte out[4];
  CHECK(error_of(Exit::data, [&] { ReadFile(path).read_at(1, out); }) ==
        "[file] " + path.string() + " is truncated: 2 bytes, wanted 5");

  WriteFile full("/dev/full", 1000);
  const std::string text = error_of(Exit::data, [&] { full.write(std::string(100, 'x')); });
  INFO(text);
  CHECK(contains(text, "cannot write /dev/full: No space left on device (1000 bytes still to write, "));
}

TEST_CASE("safetensors written by the reference implementation are read") {
  TensorMetadata metadata;
  const std::string path = std::string(SIEVE_GOLDEN_DIR) + "/reference.safetensors";
  const SafetensorsFile file(path);
  CHECK(file.entries().size() == 10);
  CHECK(file.metadata() == TensorMetadata{{"format", "pt"}, {"note", "golden"}});
  for (const char* name : {"f32", "f64", "bf16", "i64", "i32"}) CHECK(iota_values(file.read(name)) == "-2 -1 0 1 2 3 ");
  CHECK(file.read("f32").shape() == Shape{2, 3});
  CHECK(file.read("bf16").dtype() == DType::bf16);
  CHECK(iota_values(file.read("u8")) == "0 1 2 ");
  CHECK(file.read("scalar").rank() == 0);
  CHECK(file.read("scalar").item() == -2);
  CHECK(file.read("empty").shape() == Shape{0, 7});
  CHECK(file.find("name \"with\" quotes é") != nullptr);
  CHECK(file.find("f3") == nullptr);
  CHECK(error_of(Exit::data, [&] { file.read("f16"); }) ==
        "[safetensors] " + path + ": tensor \"f16\" is F16, which sieve does not read");
  CHECK(error_of(Exit::data, [&] { file.read("nope"); }) == "[safetensors] " + path + ": there is no tensor \"nope\"");

  Tensor wide = zeros({2, 3}, DType::f64), column = zeros({3, 2}, DType::f32).transpose(0, 1);
  file.read_into("f32", wide);
  file.read_into("f32", column);
  CHECK(iota_values(wide) == "-2 -1 0 1 2 3 ");
  CHECK(iota_values(column) == "-2 -1 0 1 2 3 ");
  CHECK(error_of(Exit::data, [&] { file.read_into("f64", wide); }) ==
        "[safetensors] " + path + ": tensor \"f64\" has shape (6), wanted (2, 3)");
}

TEST_CASE("safetensors round trip: every dtype, strides, aligned and ordered") {
  TempFolder folder;
  TensorMap tensors;
  int seed = 0;
  for (DType t : {DType::f32, DType::bf16, DType::f64, DType::i32, DType::i64, DType::u8}) {
    const Tensor values = random_uniform({3, 5}, 0, 100, 1, static_cast<std::uint64_t>(seed++), DType::f32);
    tensors["b." + std::string(name_of(t))] = values.to(t);
    tensors["a." + std::string(name_of(t))] = values.to(t).transpose(0, 1);
  }
  tensors["scalar"] = full({}, 3, DType::f32);
  tensors["empty"] = zeros({4, 0, 2}, DType::bf16);
  const auto path = folder / "x.safetensors";
  write_safetensors(path, tensors, {{"step", "7"}});
  CHECK(std::filesystem::file_size(path) == safetensors_bytes(tensors, {{"step", "7"}}));

  TensorMetadata metadata;
  const TensorMap back = read_safetensors(path, &metadata);
  CHECK(metadata == TensorMetadata{{"format", "pt"}, {"step", "7"}});
  REQUIRE(back.size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    INFO(name);
    CHECK(same_bits(back.at(name), tensor));
  }
  const std::string bytes = read_file(path, 1 << 20);
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  CHECK((8 + header) % 64 == 0);
  const SafetensorsFile file(path);
  std::vector<const SafetensorsEntry*> order;
  for (const SafetensorsEntry& e : file.entries()) order.push_back(&e);
  std::sort(order.begin(), order.end(),
            [](auto* a, auto* b) { return std::pair(a->begin, a->end) < std::pair(b->begin, b->end); });
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t size = size_of(tensors.at(order[i]->name).dtype());
    CHECK(order[i]->begin % size == 0);
    if (i > 0) CHECK(size <= size_of(tensors.at(order[i - 1]->name).dtype()));
  }
  write_safetensors(folder / "y.safetensors", tensors, {{"step", "7"}});
  CHECK(read_file(folder / "y.safetensors", 1 << 20) == bytes);

  write_safetensors(folder / "none.safetensors", {});
  CHECK(read_safetensors(folder / "none.safetensors").empty());
  CHECK(read_file(folder / "none.safetensors", 1000).size() == 64);
}

TEST_CASE("misaligned tensors are copied out") {
  TempFolder folder;
  const std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}} )";
  const float values[] = {1.5f, -2.5f};
  const auto path =
      folder.put("m", tensors_file(header, "\x07" + std::string(reinterpret_cast<const char*>(values), 8)));
  const Tensor b = SafetensorsFile(path).read("b");
  CHECK(b.data<float>()[0] == 1.5f);
  CHECK(b.data<float>()[1] == -2.5f);
  CHECK(reinterpret_cast<std::uintptr_t>(b.raw()) % 64 == 0);
}

TEST_CASE("every broken safetensors file is refused by what is wrong with it") {
  TempFolder folder;
  auto error = [&](const std::string& bytes) {
    const auto path = folder.put("bad", bytes);
    std::string text = error_of(Exit::data, [&] { SafetensorsFile file(path); });
    const std::string name = path.string();
    for (std::size_t at; (at = text.find(name)) != std::string::npos;) text.replace(at, name.size(), "F");
    return text;
  };
  auto entry = [&](const std::string& json, const std::string& data = "") {
    return error(tensors_file("{\"t\":" + json + "}", data));
  };
  CHECK(error("1234567") == "[safetensors] F: 7 bytes, too short for a header length");
  CHECK(error(length_prefix(100000001) + "{") == "[safetensors] F: header length 100000001 exceeds 100000000");
  CHECK(error(length_prefix(UINT64_MAX) + "{") ==
        "[safetensors] F: header length 18446744073709551615 exceeds 100000000");
  CHECK(error(length_prefix(3) + "{}") ==
        "[safetensors] F: header length 3 exceeds the 2 bytes that follow (truncated?)");
  CHECK(error(length_prefix(0)) == "[safetensors] F: the header does not begin with \"{\"");
  CHECK(error(tensors_file(" {}")) == "[safetensors] F: the header does not begin with \"{\"");
  CHECK(error(tensors_file("{}   ")).empty());
  CHECK(contains(error(tensors_file("{} x")), "[json] F (header): byte 4"));
  CHECK(contains(error(tensors_file(R"({"t":1,"t":2})")), "doubled key \"t\""));
  CHECK(contains(error(tensors_file(R"({"__metadata__":{"a":1}})")), "metadata \"a\" is not a text"));
  CHECK(contains(error(tensors_file(R"({"__metadata__":3})")), "\"__metadata__\" is not an object"));
  CHECK(entry("3") == "[safetensors] F: tensor \"t\" is not described by an object");
  CHECK(contains(entry(R"({"dtype":"F32","shape":[1]})"), "\"data_offsets\" is missing"));
  CHECK(contains(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1})", "1234"), "unknown key \"x\""));
  CHECK(contains(entry(R"({"dtype":"F31","shape":[1],"data_offsets":[0,4]})", "1234"), "unknown dtype \"F31\""));
  CHECK(contains(entry(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", "1234"),
                 "\"shape\" must be a list of integers of at least 0"));
  CHECK(contains(entry(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", "1234"), "\"shape\" must be a list"));
  CHECK(contains(entry(R"({"dtype":"F32","shape":1,"data_offsets":[0,4]})", "1234"), "\"shape\" must be a list"));
  CHECK(contains(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", "1234"), "begin <= end"));
  CHECK(contains(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,5]})", "1234"), "begin <= end"));
  CHECK(contains(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", "1234"),
                 "shape and dtype make 8 bytes, data_offsets 4"));
  CHECK(
      contains(entry(R"({"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,0]})"), "overflows 64 bits"));
  CHECK(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", "123") ==
        "[safetensors] F: the tensors take 4 bytes, the file has 3 (truncated)");
  CHECK(contains(entry(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", "12345"),
                 "something behind the last tensor"));
  CHECK(contains(entry(R"({"dtype":"U8","shape":[1],"data_offsets":[1,2]})", "12"),
                 "begins at byte 1 of the data, where 0 was expected (hole)"));
  CHECK(contains(
      error(tensors_file(
          R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
          "123")),
      "tensor \"b\" begins at byte 1 of the data, where 2 is already taken (overlap)"));
  CHECK(entry(R"({"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]})").empty());
  CHECK(contains(error_of(Exit::data, [&] { SafetensorsFile(folder / "bad").read("t"); }),
                 "is empty with absurd extents"));
  CHECK(entry(R"({"dtype":"U8","shape":[1,1,1,1,1,1,1],"data_offsets":[0,1]})", "1").empty());
  CHECK(contains(error_of(Exit::data, [&] { SafetensorsFile(folder / "bad").read("t"); }), "has 7 axes, at most 6"));
}
