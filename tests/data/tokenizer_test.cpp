// Tokenizers against Hugging Face's golden vectors (scripts/make_tokenizer_golden.py), round trips of arbitrary bytes,
// training, errors.
#include "data/tokenizer.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "core/rng.h"
#include "data/bpe_trainer.h"
#include "data/pretokenizer.h"
#include "data/utf8.h"
#include "helpers.h"
#include "io/json.h"

using namespace sieve;
using namespace sieve::test;

namespace {

using Ids = std::vector<std::int32_t>;

const std::string kGolden = std::string(SIEVE_GOLDEN_DIR) + "/tokenizers/";
const char* const kStyles[] = {"gpt2_style", "neox_style", "llama3_style"};

std::shared_ptr<const Tokenizer> golden(const std::string& style) {
  return load_tokenizer_json(kGolden + style + ".json");
}

std::string bad_bytes() { return "caf\xe9 \xff\xfe\xc3(\xe2\x82 ok\xf0\x9f\x99 \xed\xa0\x80 \xc0\xaf\xe2\x82\xac!"; }

// Random strings of words, spaces, multi-byte characters and bytes that are no UTF-8.
std::string random_text(std::uint64_t seed, std::size_t pieces) {
  static const std::string kParts[] = {" ",        "  ",       "\n", "\r\n",          "the",       " times",
                                       "'s",       "42",       "é",  "日本",          "🙂",      "\xff",
                                       "\xe2\x82", "\xf0\x9f", "a",  "<|endoftext|>", "e\xcc\x81", std::string(1, '\0'),
                                       "wisdom",   "\t",       "--"};
  const Philox random{seed, 1};
  std::string out;
  for (std::size_t i = 0; i < pieces; ++i) out += kParts[random.bits64(i) % std::size(kParts)];
  return out;
}

// Feeds `text` in pieces of `step` bytes through encode_prefix, as preparation does.
Ids encode_in_pieces(const Tokenizer& t, const std::string& text, std::size_t step) {
  Ids out;
  std::string pending;
  for (std::size_t i = 0; i < text.size(); i += step) {
    pending += text.substr(i, step);
    const std::size_t done = t.encode_prefix(pending, out);
    REQUIRE(done <= pending.size());
    pending.erase(0, done);
  }
  t.encode(pending, out, Special::as_text);
  return out;
}

std::string edited(const std::string& style, const std::function<void(Json&)>& edit) {
  Json json = read_json(kGolden + style + ".json");
  edit(json);
  return json.dump();
}

}  // namespace

TEST_CASE("golden vectors of Hugging Face", "[tokenizer]") {
  const Json vectors = read_json(kGolden + "vectors.json");
  REQUIRE(vectors["cases"].size() > 30);
  for (const std::string style : kStyles) {
    const auto tokenizer = golden(style);
    for (const Json& c : vectors["cases"]) {
      const auto text = c["text"].get<std::string>();
      CAPTURE(style, text);
      const Ids plain = tokenizer->encode(text);
      CHECK(plain == c[style]["text"].get<Ids>());
      CHECK(tokenizer->encode(text, Special::parse) == c[style]["parse"].get<Ids>());
      if (style != "neox_style") CHECK(tokenizer->decode(plain) == text);  // NFC changes text
      for (const std::size_t step : {1, 3, 17}) CHECK(encode_in_pieces(*tokenizer, text, step) == plain);
    }
  }
}

TEST_CASE("pieces of the split regexes are Hugging Face's", "[tokenizer]") {
  const Json vectors = read_json(kGolden + "vectors.json");
  for (const std::string style : {"gpt2_style", "llama3_style"}) {
    const Json pre = read_json(kGolden + style + ".json")["pre_tokenizer"];
    const bool gpt2 = style == "gpt2_style";
    const Pretokenizer split(
        {gpt2 ? std::string(kGpt2Split) : pre["pretokenizers"][0]["pattern"]["Regex"].get<std::string>()}, style);
    Pretokenizer::State state;
    for (const Json& c : vectors["cases"]) {
      const auto text = c["text"].get<std::string>();
      std::vector<std::size_t> pieces;
      split.split(state, text, [&](std::string_view piece) { pieces.push_back(piece.size()); });
      CAPTURE(style, text);
      CHECK(pieces == c[style]["pieces"].get<std::vector<std::size_t>>());
    }
  }
}

TEST_CASE("properties of the golden tokenizers", "[tokenizer]") {
  const auto gpt2 = golden("gpt2_style"), neox = golden("neox_style"), llama = golden("llama3_style");
  CHECK(gpt2->vocab_size() == 401);
  CHECK(gpt2->separator() == 400);
  CHECK(neox->separator() == 0);
  CHECK(llama->separator() == llama->id_of("<|end_of_text|>"));
  CHECK(gpt2->is_special(400));
  CHECK_FALSE(gpt2->is_special(0));
  REQUIRE(gpt2->id_of(" was").has_value());
  REQUIRE(gpt2->id_of("it").has_value());
  CHECK(gpt2->token_bytes(*gpt2->id_of(" was")) == " was");
  CHECK_FALSE(gpt2->id_of("no such token").has_value());
  CHECK(gpt2->decode(Ids{*gpt2->id_of("it"), 400}) == "it<|endoftext|>");
  CHECK(gpt2->decode(Ids{*gpt2->id_of("it"), 400}, true) == "it");
  CHECK(gpt2->hash() != neox->hash());

  const auto bytes = bytes_per_token(*gpt2);
  CHECK(bytes[400] == 0);
  CHECK(bytes[static_cast<std::size_t>(*gpt2->id_of(" was"))] == 4);
  check_error(Exit::data, {"no token has id 401", "vocabulary of 401"}, [&] { gpt2->decode(Ids{401}); });
  check_error(Exit::data, {"no token has id -1"}, [&] { gpt2->decode(Ids{-1}); });
}

TEST_CASE("any bytes come back", "[tokenizer]") {
  const auto byte = make_byte_tokenizer();
  const std::vector<std::shared_ptr<const Tokenizer>> all = {byte, golden("gpt2_style"), golden("llama3_style")};
  for (const auto& t : all) {
    CAPTURE(t->name());
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
      const std::string text = seed == 0 ? bad_bytes() : random_text(seed, 1 + seed % 60);
      CAPTURE(seed);
      const Ids ids = t->encode(text);
      CHECK(t->decode(ids) == text);
      CHECK(encode_in_pieces(*t, text, 1 + seed % 5) == ids);
      CHECK(t->decode(t->encode(text, Special::parse)) == text);
    }
  }
  // With a normalizer: the bytes that are not UTF-8 stay, the rest is normalised.
  CHECK(golden("neox_style")->decode(golden("neox_style")->encode("e\xcc\x81 \xff")) == "\xc3\xa9 \xff");
}

TEST_CASE("invalid UTF-8 is cut off and byte-encoded", "[tokenizer]") {
  const auto t = golden("gpt2_style");
  // "times" with a stray byte inside: both sides as if they stood alone, the byte between by itself.
  Ids expected = t->encode(" tim");
  expected.push_back(*t->id_of("\xff"));
  for (const std::int32_t id : t->encode("es")) expected.push_back(id);
  CHECK(t->encode(" tim\xff"
                  "es") == expected);
  CHECK(valid_utf8_prefix("ab\xc3\xa9\xe2\x82") == 4);
  CHECK(valid_utf8_prefix("\xed\xa0\x80") == 0);      // a surrogate
  CHECK(valid_utf8_prefix("\xf4\x90\x80\x80") == 0);  // above U+10FFFF
  CHECK(valid_utf8_prefix("\xc0\xaf") == 0);          // overlong
  CHECK(invalid_utf8_prefix("\xff\xe2\x82 a") == 3);
  for (const std::string_view s : {"\xc3", "\xe0", "\xe0\xa0", "\xed", "\xf0", "\xf4", "\xf4\x8f", "\xf0\x90\x80", ""})
    CHECK(utf8_may_continue(s));
  for (const std::string_view s : {"\xff", "\xc0", "\xe0\x80", "\xed\xa0", "\xf4\x90", "\xf5", "a\xc3", "\x80"})
    CHECK_FALSE(utf8_may_continue(s));
}

TEST_CASE("special tokens in ordinary text stay text", "[tokenizer]") {
  for (const auto& t : {make_byte_tokenizer(), golden("gpt2_style")}) {
    const Ids plain = t->encode("a<|endoftext|>b");
    CHECK(std::count(plain.begin(), plain.end(), *t->separator()) == 0);
    const Ids parsed = t->encode("a<|endoftext|>b", Special::parse);
    CHECK(std::count(parsed.begin(), parsed.end(), *t->separator()) == 1);
    CHECK(t->decode(plain) == t->decode(parsed));
  }
}

TEST_CASE("byte tokenizer", "[tokenizer]") {
  const auto t = make_byte_tokenizer();
  CHECK(t->name() == "byte");
  CHECK(t->vocab_size() == 257);
  CHECK(t->separator() == 256);
  CHECK(t->encode("A\xff") == Ids{65, 255});
  CHECK(t->encode("<|endoftext|>", Special::parse) == Ids{256});
  const Folder folder;
  t->save(folder / "tokenizer.json");
  const auto again = load_tokenizer_json(folder / "tokenizer.json");
  CHECK(again->hash() == t->hash());
  CHECK(again->separator() == 256);
  const std::string text = random_text(7, 500);
  CHECK(again->encode(text) == t->encode(text));
  CHECK(open_tokenizer("hf_json", folder / "")->hash() == t->hash());  // a folder that holds one
  CHECK(open_tokenizer("byte", "")->hash() == t->hash());
}

TEST_CASE("a piece of a megabyte without a split costs no more than its length", "[tokenizer]") {
  const auto t = golden("gpt2_style");
  const auto seconds = [&](const std::string& text) {
    const auto start = std::chrono::steady_clock::now();
    const Ids ids = t->encode(text);
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    CHECK(t->decode(ids) == text);
    return s;
  };
  for (const std::string unit : {"a", "ab", "\n", " ", "=", "\xff", "times"}) {
    std::string text;
    while (text.size() < (1 << 20)) text += unit;
    CAPTURE(unit);
    CHECK(seconds(text) < 5.0);  // quadratic would be hours
  }
}

TEST_CASE("one tokenizer used by several threads", "[tokenizer][threads]") {
  const auto t = golden("gpt2_style");
  const std::string text = random_text(3, 4000);
  const Ids expected = t->encode(text);
  std::vector<Ids> got(4);
  std::vector<std::thread> threads;
  for (Ids& g : got)
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) g = t->encode(text);
    });
  for (auto& thread : threads) thread.join();
  for (const Ids& g : got) CHECK(g == expected);
}

TEST_CASE("training gives Hugging Face's merges", "[tokenizer][trainer]") {
  const Json vectors = read_json(kGolden + "vectors.json");
  const auto texts = vectors["training"].get<std::vector<std::string>>();
  BpeTrainOptions options;
  options.vocab_size = 401;
  BpeTrainer trainer(options);
  for (const std::string& text : texts) trainer.add(text);
  BpeTrainReport report;
  const auto trained = trainer.train(&report);
  CHECK(trained->hash() == golden("gpt2_style")->hash());  // vocabulary, merges, split and special token alike
  CHECK(report.merges == 144);
  CHECK(report.documents == static_cast<std::int64_t>(texts.size()));

  // Pieces and the order of documents do not matter.
  BpeTrainer shuffled(options);
  for (auto it = texts.rbegin(); it != texts.rend(); ++it) {
    for (std::size_t i = 0; i < it->size(); i += 11) shuffled.add_piece(std::string_view(*it).substr(i, 11), false);
    shuffled.add_piece("", true);
  }
  CHECK(shuffled.train()->hash() == trained->hash());

  const Folder folder;
  trained->save(folder / "a.json");
  const auto loaded = load_tokenizer_json(folder / "a.json");
  CHECK(loaded->hash() == trained->hash());
  loaded->save(folder / "b.json");
  CHECK(folder.read("a.json") == folder.read("b.json"));
  CHECK(loaded->encode(texts[0]) == trained->encode(texts[0]));
}

TEST_CASE("training: limits", "[tokenizer][trainer]") {
  BpeTrainOptions options;
  options.vocab_size = 300;
  SECTION("overlapping pairs are merged from the left; ties go to the smaller ids") {
    options.vocab_size =
        259;  // two merges: aa, then of (aa, a) and (aa, aa), both seen twice, the one with the older token
    BpeTrainer trainer(options);
    trainer.add("aaaaa aaaaa");
    const auto t = trainer.train();
    CHECK(t->id_of("aa") == 256);
    CHECK(t->id_of("aaa") == 257);
    CHECK(t->encode("aaaaa") == Ids{256, 257});
  }
  SECTION("too few frequent pairs") {
    options.min_frequency = 1000;
    BpeTrainer trainer(options);
    trainer.add("a b c");
    CHECK(trainer.train()->vocab_size() == 257);
  }
  SECTION("bounded memory drops the rarest") {
    options.max_unique_bytes = 40 << 10;
    BpeTrainer trainer(options);
    for (int i = 0; i < 20000; ++i) trainer.add(cat(" common word", i, "\n"));
    BpeTrainReport report;
    const auto t = trainer.train(&report);
    CHECK(report.dropped_pretokens > 1000);
    CHECK(report.unique_pretokens < 1000);
    CHECK(t->id_of(" common").has_value());
  }
  SECTION("errors") {
    check_error(Exit::data, {"no text"}, [&] { BpeTrainer(options).train(); });
    options.vocab_size = 256;
    check_error(Exit::config, {"vocab_size", "257", "256"}, [&] { BpeTrainer{options}; });
    options.vocab_size = 300;
    options.min_frequency = 0;
    check_error(Exit::config, {"min_frequency"}, [&] { BpeTrainer{options}; });
    options.min_frequency = 2;
    options.separator = "\xff\xff";
    check_error(Exit::config, {"separator", "UTF-8"}, [&] { BpeTrainer{options}; });
  }
}

TEST_CASE("what a tokenizer.json may not hold is named", "[tokenizer][errors]") {
  const auto refused = [](const std::string& style, std::initializer_list<std::string_view> words,
                          const std::function<void(Json&)>& edit) {
    check_error(Exit::data, words, [&] { parse_tokenizer_json(edited(style, edit), "x.json"); });
  };
  refused("gpt2_style", {"x.json", "normalizer", "Lowercase"}, [](Json& j) {
    j["normalizer"] = {{"type", "Lowercase"}};
  });
  refused("gpt2_style", {"normalizer", "NFKC"}, [](Json& j) {
    j["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFKC"}}}}};
  });
  refused("gpt2_style", {"pre_tokenizer", "Metaspace"}, [](Json& j) { j["pre_tokenizer"] = {{"type", "Metaspace"}}; });
  refused("gpt2_style", {"add_prefix_space"}, [](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; });
  refused("gpt2_style", {"no pre_tokenizer"}, [](Json& j) { j["pre_tokenizer"] = nullptr; });
  refused("gpt2_style", {"decoder", "WordPiece"}, [](Json& j) { j["decoder"]["type"] = "WordPiece"; });
  refused("gpt2_style", {"post_processor", "Roberta"}, [](Json& j) {
    j["post_processor"] = {{"type", "RobertaProcessing"}};
  });
  refused("gpt2_style", {"model type", "Unigram"}, [](Json& j) { j["model"]["type"] = "Unigram"; });
  refused("gpt2_style", {"byte_fallback"}, [](Json& j) { j["model"]["byte_fallback"] = true; });
  refused("gpt2_style", {"end_of_word_suffix", "</w>"}, [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; });
  refused("gpt2_style", {"dropout"}, [](Json& j) { j["model"]["dropout"] = 0.1; });
  refused("gpt2_style", {"byte-level alphabet", "日"}, [](Json& j) { j["model"]["vocab"]["日"] = 999; });
  refused("gpt2_style", {"two tokens with id 5"}, [](Json& j) { j["model"]["vocab"]["zzzz"] = 5; });
  refused("gpt2_style", {"out of range", "-3"}, [](Json& j) { j["model"]["vocab"]["zzzz"] = -3; });
  refused("gpt2_style", {"out of range", "999999999"}, [](Json& j) { j["model"]["vocab"]["zzzz"] = 999999999; });
  refused("gpt2_style", {"merge 144", "zq"}, [](Json& j) { j["model"]["merges"].push_back("z q"); });
  refused("gpt2_style", {"merge 144", "not two tokens"}, [](Json& j) { j["model"]["merges"].push_back("z"); });
  refused("gpt2_style", {"\"vocab\" is missing"}, [](Json& j) { j["model"].erase("vocab"); });
  refused("gpt2_style", {"\"model\" is missing"}, [](Json& j) { j.erase("model"); });
  refused("gpt2_style", {"lstrip"}, [](Json& j) { j["added_tokens"][0]["lstrip"] = true; });
  refused("gpt2_style", {"id 3", "in added_tokens"}, [](Json& j) { j["added_tokens"][0]["id"] = 3; });
  refused("llama3_style", {"behavior", "Removed"},
          [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; });
  refused("llama3_style", {"invert"}, [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["invert"] = true; });
  refused("llama3_style", {"pattern", "String"}, [](Json& j) {
    j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", " "}};
  });
  const auto regex = [](const char* r) {
    return [r](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r; };
  };
  refused("llama3_style", {"split regex", "(a"}, regex("(a"));
  refused("llama3_style", {"split regex", "empty string"}, regex("a*"));
  refused("llama3_style", {"split regex", "nested classes"}, regex("[a-z&&[^b]]+"));

  check_error(Exit::data, {"x.json"}, [] { parse_tokenizer_json("{\"model\": 1, \"model\": 2}", "x.json"); });
  check_error(Exit::data, {"x.json"}, [] { parse_tokenizer_json("[1]", "x.json"); });
  check_error(Exit::data, {"missing.json"}, [] { load_tokenizer_json("/nowhere/missing.json"); });
  check_error(Exit::config, {"sentencepiece", "byte, hf_json"}, [] { open_tokenizer("sentencepiece", "x"); });
  check_error(Exit::config, {"path"}, [] { open_tokenizer("hf_json", ""); });
}

TEST_CASE("files that say the same in another way", "[tokenizer]") {
  const std::uint64_t hash = golden("gpt2_style")->hash();
  const auto same = [&](const std::function<void(Json&)>& edit) {
    CHECK(parse_tokenizer_json(edited("gpt2_style", edit), "x")->hash() == hash);
  };
  same([](Json& j) { j["model"].erase("type"); });
  same([](Json& j) { j["post_processor"] = nullptr; });
  same([](Json& j) {
    Json pairs = Json::array();
    for (const auto& m : j["model"]["merges"]) {
      const auto text = m.get<std::string>();
      pairs.push_back({text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)});
    }
    j["model"]["merges"] = pairs;
  });
  same([](Json& j) { j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {j["pre_tokenizer"]}}}; });
  // And what must not be the same.
  CHECK(parse_tokenizer_json(
            edited("gpt2_style", [](Json& j) { std::swap(j["model"]["merges"][0], j["model"]["merges"][1]); }), "x")
            ->hash() != hash);
  CHECK(parse_tokenizer_json(edited("gpt2_style",
                                    [](Json& j) {
                                      j["normalizer"] = {{"type", "NFC"}};
                                    }),
                             "x")
            ->hash() != hash);
}

TEST_CASE("a vocabulary without the byte alphabet says so at the byte", "[tokenizer][errors]") {
  const auto t = parse_tokenizer_json(edited("gpt2_style",
                                             [](Json& j) {
                                               j["model"]["merges"] = Json::array();
                                               j["model"]["vocab"].erase("Q");
                                             }),
                                      "x.json");
  CHECK(t->encode("abc").size() == 3);
  check_error(Exit::data, {"x.json", "byte 81"}, [&] { t->encode("aQb"); });
}

TEST_CASE("eos_token of tokenizer_config.json is the separator", "[tokenizer]") {
  const Folder folder;
  folder.write("tokenizer.json", edited("neox_style", [](Json&) {}));
  CHECK(load_tokenizer_json(folder / "tokenizer.json")->separator() == 0);
  folder.write("tokenizer_config.json", R"({"eos_token": "<|padding|>"})");
  CHECK(load_tokenizer_json(folder / "tokenizer.json")->separator() == 1);
  folder.write("tokenizer_config.json", R"({"eos_token": {"content": "<|padding|>"}})");
  CHECK(load_tokenizer_json(folder / "tokenizer.json")->separator() == 1);
  folder.write("tokenizer_config.json", R"({"eos_token": "</s>"})");
  check_error(Exit::data, {"</s>", "no special token"}, [&] { load_tokenizer_json(folder / "tokenizer.json"); });
}
