// What a preparation may replace, and that nothing is lost where it fails, is killed or is not alone.
#include <filesystem>

#include "corpus.h"
#include "data/token_store.h"
#include "data/work_folder.h"
#include "io/file.h"

using namespace sieve;
using namespace sieve::test;
namespace fs = std::filesystem;

TEST_CASE("splits that were set apart before have names of their own and stay side by side", "[prepare]") {
  const Folder folder;
  const auto t = make_byte_tokenizer();
  auto o = options_for(folder, {}, "out");
  const auto texts_of = [&](const char* split) { return documents(TokenStore(o.output + "/" + split, t.get()), *t); };
  using Texts = std::vector<std::string>;
  for (const char* name : {"val", "test-2_B", "train"}) {  // in any order
    o.inputs = {folder.write(cat(name, ".txt"), name)};
    o.split = name;
    const PrepareReport r = prepare(*t, o);
    CHECK(r.train.shards == Texts{o.output + "/" + name + "/shard_00000.h5"});
    CHECK(r.removed.empty());
    CHECK(TokenStore(o.output + "/" + name, t.get()).shards()[0].split == name);
    check_error(Exit::config, {name, "1 shard", "--overwrite", "--split"}, [&] { prepare(*t, o); });
  }
  o.overwrite = true;
  o.inputs = {folder.write("b.txt", "three")};
  CHECK(prepare(*t, o).removed.empty());  // train alone: val was not set aside from it
  CHECK(texts_of("train") == Texts{"three"});
  CHECK(texts_of("val") == Texts{"val"});
  o.split = "test-2_B";
  prepare(*t, o);
  CHECK(texts_of("test-2_B") == Texts{"three"});
  o.val_fraction = 0.4;
  check_error(Exit::config, {"0.4", "test-2_B"}, [&] { prepare(*t, o); });
  o.val_fraction = 0;
  for (const std::string& name : {std::string(), std::string(".."), std::string("a/b"), std::string("a b"),
                                  std::string("-x"), std::string("caf\xc3\xa9"), std::string(65, 'a')}) {
    o.split = name;
    check_error(Exit::config, {"is no name of a folder"}, [&] { prepare(*t, o); });
  }
}

TEST_CASE("a val of the same text goes with its train, and a doubtful one is an error", "[prepare]") {
  const Folder folder;
  const auto t = make_byte_tokenizer();
  auto o = options_for(folder, {folder.write("a.jsonl", json_lines({"one", "two", "three"}))}, "out");
  o.split = "val";
  prepare(*t, o);
  o.split = "train";  // the text that val/ holds already
  check_error(Exit::config, {"out/val", "same text"}, [&] { prepare(*t, o); });
  CHECK(fs::exists(o.output + "/val"));
  CHECK_FALSE(fs::exists(o.output + "/train"));
  o.overwrite = true;
  CHECK(prepare(*t, o).removed == std::vector<std::string>{o.output + "/val"});
  o.split = "val";
  o.inputs = {folder.write("b.txt", "four")};
  prepare(*t, o);
  o.split = "train";
  fs::resize_file(o.output + "/train/shard_00000.h5", 1000);
  check_error(Exit::config, {"out/train", "damaged"}, [&] { prepare(*t, o); });
  fs::remove_all(o.output + "/train");
  o.inputs = {folder.write("c.txt", "five")};
  CHECK(prepare(*t, o).removed.empty());
  fs::resize_file(o.output + "/val/shard_00000.h5", 1000);
  check_error(Exit::config, {"out/val", "damaged"}, [&] { prepare(*t, o); });
}

TEST_CASE("what comes while text is read is not replaced, and a second preparation waits for no turn", "[prepare]") {
  const Folder folder;
  const auto t = make_byte_tokenizer();
  auto o = options_for(folder, {folder.write("a.txt", "one")}, "out");
  int calls = 0;
  const auto meanwhile = [&](const PrepareProgress&) {
    if (calls++ > 0) return;
    folder.write("out/train/notes.txt", "by hand");
    auto second = o;
    second.split = "test";
    check_error(Exit::config, {"another preparation", "out"}, [&] { prepare(*t, second); });
  };
  check_error(Exit::config, {"notes.txt"}, [&] { prepare(*t, o, meanwhile); });
  CHECK(calls > 0);
  CHECK(read_file(folder / "out/train/notes.txt", 100) == "by hand");
  CHECK_FALSE(fs::exists(folder / "out/.tmp-prepare"));
}

TEST_CASE("a replacement that fails or was killed half-way leaves what was there", "[prepare]") {
  const Folder folder;
  const auto t = make_byte_tokenizer();
  auto o = options_for(folder, {folder.write("a.jsonl", json_lines({"one", "two", "three"}))}, "out");
  o.val_fraction = 0.4;
  prepare(*t, o);
  const auto before = contents(o.output);
  {
    WorkFolder work(o.output);
    fs::create_directories(work.path() / "train");
    fs::create_directories(work.path() / "nowhere/test");  // there is no out/nowhere to take it
    const SplitFolders folders{.written = {"train", "nowhere/test"}, .orphaned = {"val"}};
    check_error(Exit::data, {"cannot rename", "nowhere"}, [&] { work.publish(folders); });
  }
  CHECK(contents(o.output) == before);
  // Killed when train/ had been replaced and val/ had not.
  const fs::path work = o.output + "/.tmp-prepare";
  fs::create_directories(work / "val");
  fs::rename(o.output + "/train", work / "old-train");
  fs::rename(o.output + "/val", work / "old-val");
  folder.write("out/train/shard_00000.h5", "new");
  { const WorkFolder next(o.output); }
  CHECK(contents(o.output) == before);
  // Killed when all had been.
  fs::create_directories(work);
  fs::rename(o.output + "/train", work / "old-train");
  folder.write("out/train/shard_00000.h5", "new");
  { const WorkFolder next(o.output); }
  CHECK(read_file(o.output + "/train/shard_00000.h5", 100) == "new");
}

TEST_CASE("only folders of shards are replaced", "[prepare]") {
  const Folder folder;
  const auto t = make_byte_tokenizer();
  folder.write("books/a.txt", "one");
  folder.write("books/train/b.txt", "two");
  auto o = options_for(folder, {folder / "books"}, "books");  // where a text lies that would have been replaced
  for (const bool overwrite : {false, true}) {
    o.overwrite = overwrite;
    check_error(Exit::config, {"books/train", "b.txt", "no token shard"}, [&] { prepare(*t, o); });
  }
  CHECK(fs::exists(folder / "books/train/b.txt"));
  CHECK_FALSE(fs::exists(folder / "books/.tmp-prepare"));
  o.overwrite = false;
  o.split = "shards";
  CHECK(prepare(*t, o).train.documents == 2);
  folder.write("books/shards/notes.txt", "by hand");
  o.overwrite = true;
  check_error(Exit::config, {"notes.txt"}, [&] { prepare(*t, o); });
  fs::remove(folder / "books/shards/notes.txt");
  CHECK(prepare(*t, o).train.documents == 2);                                           // its own shards are no text
  auto named = options_for(folder, {folder / "books/shards/shard_00000.h5"}, "books");  // but named it is not left out
  named.split = "more";
  check_error(Exit::data, {"books/shards/shard_00000.h5", "token shard"}, [&] { prepare(*t, named); });
  // To another output they are not its own.
  auto other = options_for(folder, {folder / "books"}, "elsewhere");
  other.allow_invalid_utf8 = true;
  check_error(Exit::data, {"books/shards/shard_00000.h5", "token shard"}, [&] { prepare(*t, other); });
  folder.write("file", "");
  fs::create_directories(folder / "flat");
  folder.write("flat/train", "a file");
  auto flat = options_for(folder, {folder / "books/a.txt"}, "flat");
  check_error(Exit::config, {"flat/train", "is a file"}, [&] { prepare(*t, flat); });
  fs::remove(folder / "flat/train");
  fs::create_directory_symlink(folder / "books/shards", folder / "flat/train");
  flat.overwrite = true;
  check_error(Exit::config, {"flat/train", "is a link"}, [&] { prepare(*t, flat); });
  fs::remove(folder / "flat/train");
  folder.write("flat/train/shard_00000.h5", "text in the name of a shard");
  check_error(Exit::config, {"shard_00000.h5", "no token shard"}, [&] { prepare(*t, flat); });
}

TEST_CASE("what is there is not overwritten unasked, and an old val goes with its train", "[prepare]") {
  const Folder folder;
  const auto t = bpe();
  auto o = options_for(folder, {folder.write("in.jsonl", json_lines({"one", "two", "three"}))});
  o.val_fraction = 0.3;
  prepare(*t, o);
  check_error(Exit::config, {"out/train", "exists"}, [&] { prepare(*t, o); });
  o.val_fraction = 0;
  check_error(Exit::config, {"out/train", "val/ is of the same text"}, [&] { prepare(*t, o); });
  o.overwrite = true;
  CHECK(prepare(*t, o).removed == std::vector<std::string>{o.output + "/val"});
  CHECK(TokenStore(o.output + "/train").documents() == 3);
  CHECK_FALSE(fs::exists(o.output + "/val"));
  // The output may lie within the input: its own shards are not read as text.
  const Folder inside;
  inside.write("a.txt", "some text");
  auto p = options_for(inside, {inside / ""}, "shards");
  prepare(*t, p);
  p.overwrite = true;
  CHECK(prepare(*t, p).train.documents == 1);
}
