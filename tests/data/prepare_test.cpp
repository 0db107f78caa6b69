// Text -> shards -> tokens again: inputs, splits, shard borders, bounded memory, and what goes wrong.
#include "data/prepare.h"

#include <malloc.h>
#include <sys/resource.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <map>
#include <thread>

#include "core/parallel_for.h"
#include "core/rng.h"
#include "corpus.h"
#include "data/token_store.h"
#include "io/file.h"
#include "io/json.h"

using namespace sieve;
using namespace sieve::test;
namespace fs = std::filesystem;

namespace {

using Ids = std::vector<std::int32_t>;

std::string gzip(const std::string& text) {
  z_stream z{};
  REQUIRE(deflateInit2(&z, 6, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string out(deflateBound(&z, text.size()) + 64, '\0');
  z.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  z.avail_in = static_cast<uInt>(text.size());
  z.next_out = reinterpret_cast<Bytef*>(out.data());
  z.avail_out = static_cast<uInt>(out.size());
  REQUIRE(deflate(&z, Z_FINISH) == Z_STREAM_END);
  out.resize(z.total_out);
  deflateEnd(&z);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

std::size_t count_entries(const std::string& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator{}));
}

}  // namespace

TEST_CASE("all kinds of input come back as documents", "[prepare]") {
  const Folder folder;
  const std::string a = words(1, 300), b = words(2, 10), c = words(3, 500);
  folder.write("in/b.txt", b);
  folder.write("in/a.txt.gz", gzip(a));
  folder.write("in/sub/c", zstd(c));
  folder.write("in/sub/empty.txt", "");
  folder.write("in/.hidden", "not this");
  folder.write("in/z.jsonl.zst",
               zstd(json_lines({"one", "", "zwei\nZeilen", "t\xc3\xa9"}) + "\n  \n" + json_lines({"last"})));
  const std::string extra = folder.write("extra.jsonl.gz", gzip(json_lines({"x", "y"})));
  for (const auto& t : {make_byte_tokenizer(), bpe()}) {
    auto o = options_for(folder, {folder / "in", extra}, t->name());
    const PrepareReport r = prepare(*t, o);
    CHECK(r.files == 6);
    CHECK(r.empty_documents == 2);
    CHECK(r.train.documents == 9);
    CHECK(r.val.shards.empty());
    CHECK_FALSE(fs::exists(o.output + "/val"));
    CHECK_FALSE(fs::exists(o.output + "/.tmp-prepare"));
    const TokenStore store(o.output + "/train", t.get());
    CHECK(documents(store, *t) ==
          std::vector<std::string>{a, b, c, "one", "zwei\nZeilen", "t\xc3\xa9", "last", "x", "y"});
    CHECK(store.tokens() == r.train.tokens);
    store.verify();
    const ShardInfo& info = store.shards().front();
    CHECK(info.token_bytes == 2);
    CHECK(info.tokenizer_hash == t->hash());
    CHECK(info.separator == *t->separator());
    CHECK(info.source_hash == r.source_hash);
    CHECK(info.split == "train");
    const std::string report = store.report();
    CHECK(report.find(hex64(t->hash())) != std::string::npos);
    CHECK(report.find("9 documents") != std::string::npos);
  }
  auto o = options_for(folder, {folder.write("body.ndjson", json_lines({"q"}, "body"))});
  o.field = "body";
  CHECK(prepare(*bpe(), o).train.documents == 1);
}

TEST_CASE("many small documents over many shards", "[prepare]") {
  const Folder folder;
  const auto t = bpe();
  std::vector<std::string> texts;
  for (std::uint64_t i = 0; i < 5000; ++i) texts.push_back(words(i, 1 + i % 9));
  texts[70] = words(1, 3000);  // longer than a shard: a shard of its own
  auto o = options_for(folder, {folder.write("in.jsonl", json_lines(texts))});
  o.shard_tokens = 2000;
  const PrepareReport r = prepare(*t, o);
  const TokenStore store(o.output + "/train/*.h5", t.get());
  CHECK(documents(store, *t) == texts);
  REQUIRE(store.shards().size() == r.train.shards.size());
  CHECK(store.shards().size() > 10);
  int longer = 0;
  for (const ShardInfo& s : store.shards()) {
    longer += s.tokens > 2000;
    CHECK((s.tokens <= 2000 || s.documents == 1));
  }
  CHECK(longer == 1);
  store.verify();
  // Reads across shard borders equal the whole; starts of any range are those of the whole.
  Ids all(static_cast<std::size_t>(store.tokens()));
  store.read(0, all);
  std::vector<std::int64_t> starts;
  store.document_starts(0, store.tokens(), starts);
  const Philox random{4, 4};
  for (std::uint64_t i = 0; i < 300; ++i) {
    const auto begin = static_cast<std::int64_t>(random.bits64(2 * i) % static_cast<std::uint64_t>(store.tokens()));
    const auto n = static_cast<std::int64_t>(random.bits64(2 * i + 1) % 5000);
    const std::int64_t end = std::min(begin + n, store.tokens());
    Ids part(static_cast<std::size_t>(end - begin));
    store.read(begin, part);
    REQUIRE(std::equal(part.begin(), part.end(), all.begin() + begin));
    std::vector<std::int64_t> found, expected;
    store.document_starts(begin, end, found);
    for (const std::int64_t s : starts) {
      if (s >= begin && s < end) expected.push_back(s);
    }
    REQUIRE(found == expected);
  }
  CHECK_THROWS_AS(store.read(store.tokens() - 1, std::span(all).first(2)), Error);
}

TEST_CASE("a vocabulary above 65536 is stored as u32", "[prepare]") {
  const Folder folder;
  Json json = read_json(std::string(SIEVE_GOLDEN_DIR) + "/tokenizers/gpt2_style.json");
  json["added_tokens"].push_back({{"id", 70000}, {"content", "<far>"}, {"special", false}, {"normalized", false}});
  const auto t = parse_tokenizer_json(json.dump(), "x");
  auto o = options_for(folder, {folder.write("a.txt", "it was<far> the")});
  prepare(*t, o);
  const TokenStore store(o.output + "/train", t.get());
  CHECK(store.shards()[0].token_bytes == 4);
  CHECK(documents(store, *t) == std::vector<std::string>{"it was<far> the"});
  Ids ids(static_cast<std::size_t>(store.tokens()));
  store.read(0, ids);
  CHECK(std::count(ids.begin(), ids.end(), 70000) == 1);
  store.verify();
}

TEST_CASE("the same bytes for any number of threads and any run", "[prepare]") {
  const Folder folder;
  std::vector<std::string> texts;
  for (std::uint64_t i = 0; i < 300; ++i) texts.push_back(words(i, 400));
  folder.write("in/a.jsonl", json_lines(texts));
  folder.write("in/b.txt", words(999, 20000));
  const auto t = bpe();
  const int before = num_threads();
  std::vector<std::map<std::string, std::string>> results;
  for (const int threads : {1, 2, 4, 1}) {
    set_num_threads(threads);
    auto o = options_for(folder, {folder / "in"}, "out");
    o.val_fraction = 0.1;
    o.shard_tokens = 20000;
    o.overwrite = true;
    if (results.size() == 3)
      std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // a clock of seconds moves on
    prepare(*t, o);
    results.push_back(contents(o.output));
  }
  set_num_threads(before);
  CHECK(results[0].size() > 3);
  for (const auto& r : results) CHECK(r == results[0]);
}

TEST_CASE("text files are encoded piece by piece with the ids of the whole", "[prepare]") {
  const Folder folder;
  const auto t = bpe();
  std::string text;  // more than two pieces of 4 MiB, multi-byte characters on every border
  for (std::uint64_t i = 0; text.size() < (9u << 20); ++i) text += words(i % 50, 2000);
  auto o = options_for(folder, {folder.write("long.txt", text)});
  const PrepareReport r = prepare(*t, o);
  CHECK(r.text_bytes == static_cast<std::int64_t>(text.size()));
  const TokenStore store(o.output + "/train");
  Ids ids(static_cast<std::size_t>(store.tokens()));
  store.read(0, ids);
  Ids expected = t->encode(text);
  expected.push_back(*t->separator());
  CHECK(ids == expected);
}

TEST_CASE("memory does not grow with the text", "[prepare]") {
  const Folder folder;
  const std::string block = words(5, 100000);
  const auto highest = [&](std::size_t size, const std::string& name) {
    {
      std::ofstream out(folder / name, std::ios::binary);
      for (std::size_t written = 0; written < size; written += block.size()) out << block;
    }
    const auto t = make_byte_tokenizer();  // the most tokens
    std::size_t most = 0;
    // Called while the buffers of the piece at hand are alive. (glibc's numbers; a sanitizer's allocator keeps others.)
    const PrepareReport r =
        prepare(*t, options_for(folder, {folder / name}, name + ".out"), [&](const PrepareProgress&) {
          const struct mallinfo2 info = mallinfo2();
          most = std::max(most, info.uordblks + info.hblkhd);
        });
    CHECK(r.text_bytes >= static_cast<std::int64_t>(size));
    return most;
  };
  const std::size_t small = highest(16u << 20, "small.txt"), big = highest(64u << 20, "big.txt");
  CAPTURE(small, big);
  CHECK(big < small + (4u << 20));  // one byte kept per token would be 48 MiB more
}

TEST_CASE("splits: by the hash of the text, never empty", "[prepare]") {
  const Folder folder;
  const auto t = bpe();
  std::vector<std::string> texts;
  for (std::uint64_t i = 0; i < 600; ++i) texts.push_back(words(i, 20));
  const auto run = [&](const std::vector<std::string>& in, double fraction) {
    auto o = options_for(folder, {folder.write("in.jsonl", json_lines(in))});
    o.val_fraction = fraction;
    o.overwrite = true;
    const PrepareReport r = prepare(*t, o);
    auto train = documents(TokenStore(o.output + "/train"), *t), val = documents(TokenStore(o.output + "/val"), *t);
    CHECK(static_cast<std::size_t>(r.train.documents + r.val.documents) == train.size() + val.size());
    return std::pair(train, val);
  };
  const auto [train, val] = run(texts, 0.2);
  CHECK(train.size() + val.size() == 600);
  CHECK(val.size() > 80);
  CHECK(val.size() < 160);
  // Order and neighbours do not matter: the first half alone splits as it did in the whole.
  const auto [train_half, val_half] = run({texts.begin(), texts.begin() + 300}, 0.2);
  CHECK(std::equal(train_half.begin(), train_half.end(), train.begin()));
  CHECK(std::equal(val_half.begin(), val_half.end(), val.begin()));
  // A larger fraction only adds documents.
  const auto [train_more, val_more] = run(texts, 0.4);
  for (const auto& d : val) CHECK(std::count(val_more.begin(), val_more.end(), d) > 0);

  for (std::size_t n = 2; n < 7; ++n) {  // a handful: neither side is empty
    for (const double fraction : {0.001, 0.5, 0.999}) {
      const auto [few_train, few_val] = run({texts.begin(), texts.begin() + static_cast<std::ptrdiff_t>(n)}, fraction);
      CHECK(few_train.size() >= 1);
      CHECK(few_val.size() >= 1);
      CHECK(few_train.size() + few_val.size() == n);
    }
  }
}

TEST_CASE("splits: documents that come in pieces are told apart by their text too", "[prepare]") {
  const Folder folder;
  const auto t = make_byte_tokenizer();
  std::string a, b;
  while (a.size() < (5u << 20)) a += words(1, 50000), b += words(2, 50000);
  const auto validation = [&](const std::string& first, const std::string& second) {
    folder.write("in/1.txt", first);
    folder.write("in/2.txt", second);
    auto o = options_for(folder, {folder / "in"});
    o.val_fraction = 0.5;
    o.overwrite = true;
    prepare(*t, o);
    return documents(TokenStore(o.output + "/val"), *t);
  };
  CHECK(validation(a, b) == validation(b, a));
}

TEST_CASE("splits: a single document is cut at its end", "[prepare]") {
  const Folder folder;
  const auto t = make_byte_tokenizer();
  const std::string text = words(3, 1000);
  auto o = options_for(folder, {folder.write("book.txt", text)});
  o.val_fraction = 0.1;
  const PrepareReport r = prepare(*t, o);
  const auto n = static_cast<std::int64_t>(text.size()) + 1;
  CHECK(r.val.tokens == (n + 9) / 10);
  CHECK(r.train.tokens == n - r.val.tokens + 1);  // and a separator of its own
  const auto train = documents(TokenStore(o.output + "/train"), *t), val = documents(TokenStore(o.output + "/val"), *t);
  REQUIRE(train.size() == 1);
  REQUIRE(val.size() == 1);
  CHECK(train[0] + val[0] == text);
}

TEST_CASE("bad input of prepare", "[prepare][errors]") {
  const Folder folder;
  const auto t = bpe();
  const auto refused = [&](Exit code, std::initializer_list<std::string_view> words,
                           const std::vector<std::string>& inputs) {
    check_error(code, words, [&] { prepare(*t, options_for(folder, inputs)); });
    CHECK_FALSE(fs::exists(folder / "out/train"));
    CHECK_FALSE(fs::exists(folder / "out/.tmp-prepare"));
  };
  refused(Exit::data, {"missing.txt", "no such file"}, {folder / "missing.txt"});
  fs::create_directories(folder / "nothing");
  refused(Exit::data, {"nothing", "no files"}, {folder / "nothing"});
  refused(Exit::data, {"empty.txt", "no text"}, {folder.write("empty.txt", "")});
  refused(Exit::data, {"latin1.txt", "not UTF-8", "byte 3", "0xE9", "iconv"},
          {folder.write("latin1.txt", "caf\xe9 au lait")});
  refused(Exit::data, {"cut.txt", "not UTF-8", "byte 2"}, {folder.write("cut.txt", "ab\xe2\x82")});
  refused(Exit::data, {"bad.jsonl", "line 2", "not UTF-8"},
          {folder.write("bad.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\xe9\"}\n")});
  refused(Exit::data, {"syntax.jsonl", "line 3"}, {folder.write("syntax.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \n")});
  refused(Exit::data, {"field.jsonl", "line 1", "\"text\""}, {folder.write("field.jsonl", "{\"body\": \"a\"}\n")});
  refused(Exit::data, {"type.jsonl", "line 1", "not a string"}, {folder.write("type.jsonl", "{\"text\": 3}\n")});
  const std::string packed = gzip(words(1, 20000));
  refused(Exit::data, {"cut.gz"}, {folder.write("cut.gz", packed.substr(0, packed.size() / 2))});
  refused(Exit::config, {"no input"}, {});

  auto o = options_for(folder, {folder.write("a.txt", "some text")});
  o.val_fraction = 1.0;
  check_error(Exit::config, {"val fraction 1"}, [&] { prepare(*t, o); });
  o.val_fraction = 0;
  o.shard_tokens = 0;
  check_error(Exit::config, {"shard size 0"}, [&] { prepare(*t, o); });
  o = options_for(folder, {folder / "a.txt"});
  o.output = folder / "a.txt/below";  // a file where a folder should be
  check_error(Exit::data, {"a.txt/below"}, [&] { prepare(*t, o); });
  Json json = read_json(std::string(SIEVE_GOLDEN_DIR) + "/tokenizers/gpt2_style.json");
  json["added_tokens"] = Json::array();
  check_error(Exit::data, {"no token that ends a document", "eos_token"},
              [&] { prepare(*parse_tokenizer_json(json.dump(), "x"), options_for(folder, {folder / "a.txt"})); });

  o = options_for(folder, {folder / "latin1.txt"});
  o.allow_invalid_utf8 = true;
  prepare(*t, o);
  CHECK(documents(TokenStore(o.output + "/train"), *t) == std::vector<std::string>{"caf\xe9 au lait"});
}

TEST_CASE("a full disk leaves nothing behind and says where", "[prepare][errors]") {
  const Folder folder;
  const auto t = make_byte_tokenizer();
  const std::string in = folder.write("in.txt", words(1, 400000));
  rlimit old{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = old;
  // Writes beyond fail, first of the temporary tokens, then (larger limit: HDF5's header on top) of the shard.
  const auto raw = static_cast<rlim_t>(2 * (fs::file_size(in) + 1));
  for (const rlim_t limit : {rlim_t{1 << 20}, raw + 8}) {
    small.rlim_cur = limit;
    setrlimit(RLIMIT_FSIZE, &small);
    auto o = options_for(folder, {in});
    check_error(Exit::data, {"out/.tmp-prepare"}, [&] { prepare(*t, o); });
    setrlimit(RLIMIT_FSIZE, &old);
    CHECK(count_entries(o.output) == 0);
  }
  std::signal(SIGXFSZ, handler);
}
