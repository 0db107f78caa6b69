#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <numeric>
#include <thread>

#include "core/rng.h"
#include "helpers.h"
#include "io/file.h"
#include "io/hdf5.h"
#include "io/text_input.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace fs = std::filesystem;

namespace {

std::string whole(const fs::path& path, std::size_t piece) {
  TextReader reader(path);
  std::string out;
  std::vector<char> buffer(piece);
  while (const std::size_t n = reader.read(buffer)) out.append(buffer.data(), n);
  CHECK(reader.read(buffer) == 0);
  CHECK(reader.produced_bytes() == out.size());
  CHECK(reader.consumed_bytes() == reader.file_bytes());
  return out;
}

std::vector<std::string> lines_of(const fs::path& path) {
  TextReader reader(path);
  std::vector<std::string> out;
  std::string line;
  while (reader.read_line(line)) out.push_back(line);
  CHECK(reader.line_number() == out.size());
  return out;
}

std::string small_text() {
  std::string out;
  for (int i = 1; i <= 200; ++i) out += "line " + std::to_string(i) + " of a small text\n";
  return out;
}

std::string golden(const char* name) { return read_file(std::string(SIEVE_GOLDEN_DIR) + "/" + name, 10000); }

}  // namespace

TEST_CASE("text is read plain and packed, whatever the name") {
  TempFolder folder;
  const std::string text = small_text();
  const auto plain = folder.put("plain.gz", text);  // the name lies
  const auto gz = folder.put("a.bin", golden("small.txt.gz"));
  const auto zst = folder.put("b.bin", golden("small.txt.zst"));
  CHECK(TextReader(plain).compression() == Compression::none);
  CHECK(TextReader(gz).compression() == Compression::gzip);
  CHECK(TextReader(zst).compression() == Compression::zstd);
  for (const auto& path : {plain, gz, zst}) {
    for (std::size_t piece : {1, 7, 4096, 1 << 20}) CHECK(whole(path, piece) == text);
    const auto lines = lines_of(path);
    REQUIRE(lines.size() == 200);
    CHECK(lines[41] == "line 42 of a small text");
  }
  // members and frames one behind the other, a skippable zstd frame first
  CHECK(whole(folder.put("two.gz", golden("small.txt.gz") + golden("small.txt.gz")), 1000) == text + text);
  const std::string skippable("\x52\x2a\x4d\x18\x03\0\0\0abc", 11);
  CHECK(whole(folder.put("two.zst", skippable + golden("small.txt.zst") + golden("small.txt.zst")), 1000) ==
        text + text);
}

TEST_CASE("lines at the edges") {
  TempFolder folder;
  CHECK(lines_of(folder.put("e", "")).empty());
  CHECK(lines_of(folder.put("n", "\n\n")) == std::vector<std::string>{"", ""});
  CHECK(lines_of(folder.put("t", "a\r\nb")) == std::vector<std::string>{"a\r", "b"});
  const std::string longest(1000000, 'x');
  CHECK(lines_of(folder.put("l", longest + "\ny\n")) == std::vector<std::string>{longest, "y"});
  TextReader limited(folder / "l");
  std::string line;
  CHECK(error_of(Exit::data, [&] { limited.read_line(line, 1000); }) ==
        "[text] " + (folder / "l").string() + ": line 1 is longer than 1000 bytes");
  TextReader mixed(folder.put("m", "first\nsecond\n"));
  REQUIRE(mixed.read_line(line));
  std::vector<char> rest(100);
  CHECK(mixed.read(rest) == 7);
  CHECK(std::string(rest.data(), 7) == "second\n");
  CHECK(mixed.produced_bytes() == 13);
}

TEST_CASE("packed text that ends early or is damaged is refused with its place") {
  TempFolder folder;
  for (const char* name : {"small.txt.gz", "small.txt.zst"}) {
    const std::string bytes = golden(name);
    const std::string kind = std::string(name).find("gz") != std::string::npos ? "gzip" : "zstd";
    for (std::size_t cut = 4; cut < bytes.size(); cut += cut < 20 || cut + 12 > bytes.size() ? 1 : 37) {
      const auto path = folder.put("cut", bytes.substr(0, cut));
      INFO(name << " cut at " << cut);
      CHECK(error_of(Exit::data, [&] { whole(path, 1000); }) == "[text] " + path.string() + ": the " + kind +
                                                                    " stream ends early at byte " +
                                                                    std::to_string(cut) + " of " + std::to_string(cut));
    }
    std::string damaged = bytes;
    damaged[bytes.size() / 2] = static_cast<char>(damaged[bytes.size() / 2] ^ 0x10);
    CHECK(contains(error_of(Exit::data, [&] { whole(folder.put("damaged", damaged), 1000); }),
                   "the " + kind + " stream is damaged ("));
    CHECK(contains(error_of(Exit::data, [&] { whole(folder.put("tail", bytes + "garbage behind"), 1000); }),
                   "is damaged ("));
  }
  CHECK(contains(error_of(Exit::data, [&] { TextReader reader(folder.put("x", "BZh91AY")); }),
                 "is packed by bzip2, which is not read"));
  CHECK(contains(error_of(Exit::data,
                          [&] {
                            TextReader reader(folder.put("x", std::string("\xfd"
                                                                          "7zXZ\0\0",
                                                                          7)));
                          }),
                 "is packed by xz"));
  CHECK(contains(error_of(Exit::data, [&] { TextReader reader(folder.path()); }), "is a folder"));
  CHECK(contains(error_of(Exit::data, [&] { TextReader reader(folder / "none"); }), "cannot open"));
}

TEST_CASE("a folder that may not be read is named, not the one that it lies in") {
  TempFolder folder;
  folder.put("open/a.txt", "x");
  folder.put("shut/b.txt", "x");
  fs::permissions(folder.path(), fs::perms(0755));
  fs::permissions(folder / "shut", fs::perms::none);
  const bool root = geteuid() == 0;  // who may read everything
  if (root) REQUIRE(seteuid(65534) == 0);
  const std::string said = error_of(Exit::data, [&] { list_text_files(folder.path(), {}); });
  if (root) REQUIRE(seteuid(0) == 0);
  fs::permissions(folder / "shut", fs::perms::owner_all);
  CAPTURE(said);
  CHECK(contains(said, "cannot list " + (folder / "shut").string() + ": "));
}

TEST_CASE("folders are listed in byte order, hidden things left out") {
  TempFolder folder;
  for (const char* name : {"b.txt", "a/z.txt", "a/a.jsonl.gz", "a-b/x.txt", ".git/config.txt", "c.md", ".txt"})
    folder.put(name, "x");
  fs::create_symlink(folder / "c.md", folder / "link.txt");
  fs::create_symlink(folder / "nowhere", folder / "dangling.txt");
  fs::create_directory_symlink(folder.path(), folder / "a/loop");
  const std::string extensions[] = {".txt", ".jsonl.gz"};
  std::vector<std::string> names;
  for (const auto& path : list_text_files(folder.path(), extensions))
    names.push_back(fs::relative(path.parent_path(), folder.path()) / path.filename());
  CHECK(names == std::vector<std::string>{"a-b/x.txt", "a/a.jsonl.gz", "a/z.txt", "./b.txt", "./link.txt"});
  CHECK(list_text_files(folder / "c.md", extensions).size() == 1);
  CHECK(list_text_files(folder.path(), {}).size() == 6);
  CHECK(contains(error_of(Exit::data, [&] { list_text_files(folder / "none", extensions); }),
                 "there is no file or folder"));
  CHECK(glob_files((folder / "*/?.txt").string()) == std::vector<fs::path>{folder / "a-b/x.txt", folder / "a/z.txt"});
  CHECK(glob_files((folder / "*.h5").string()).empty());
}

TEST_CASE("HDF5 datasets: pieces at offsets, raw bytes, attributes") {
  TempFolder folder;
  const auto path = folder / "x.h5";
  std::vector<std::uint16_t> tokens(100003);
  std::iota(tokens.begin(), tokens.end(), std::uint16_t{7});
  const std::vector<std::uint64_t> offsets = {0, 17, 100003, std::uint64_t{1} << 60};
  auto write_file = [&](const fs::path& to) {
    Hdf5File file = Hdf5File::create(to);
    const Hdf5Dataset set = file.create_dataset("tokens", H5Type::u16, tokens.size());
    const Hdf5Dataset ends = file.create_dataset("offsets", H5Type::u64, offsets.size());
    file.create_dataset("none", H5Type::u32, 0);
    file.create_dataset("signed", H5Type::i64, 1).write<std::int64_t>(0, std::vector<std::int64_t>{-5});
    for (std::size_t at = 50000; at < tokens.size(); at += 1000)
      set.write<std::uint16_t>(at,
                               std::span(tokens).subspan(at).first(std::min<std::size_t>(1000, tokens.size() - at)));
    set.write<std::uint16_t>(0, std::span(tokens).first(50000));
    ends.write<std::uint64_t>(0, offsets);
    file.set_attribute("tokenizer", "old");
    file.set_attribute("tokenizer", "h\xc3\xa9");
    file.set_attribute("empty", "");
    file.set_attribute("version", 1);
    file.set_attribute("minus", std::int64_t{-1} << 62);
    CHECK(contains(error_of(Exit::data, [&] { set.write<std::uint16_t>(tokens.size(), std::span(tokens).first(1)); }),
                   "are not within its 100003"));
    CHECK(contains(error_of(Exit::data, [&] { set.write<std::uint32_t>(0, std::vector<std::uint32_t>{1}); }),
                   "tokens: holds u16, not u32"));
    CHECK(contains(error_of(Exit::data, [&] { file.create_dataset("tokens", H5Type::u16, 1); }),
                   "tokens: cannot be created"));
    CHECK(contains(error_of(Exit::data, [&] { file.create_dataset("huge", H5Type::u64, UINT64_MAX / 4); }),
                   "are too many"));
    file.close();
    CHECK_FALSE(error_of(Exit::internal, [&] { set.write<std::uint16_t>(0, tokens); }).empty());
    CHECK_FALSE(error_of(Exit::internal, [&] { static_cast<void>(file.dataset("tokens")); }).empty());
  };
  write_file(path);
  write_file(folder / "y.h5");
  CHECK(read_file(path, 1 << 20) == read_file(folder / "y.h5", 1 << 20));  // no times inside

  const Hdf5File file = Hdf5File::open(path);
  const Hdf5Dataset set = file.dataset("tokens");
  CHECK(set.type() == H5Type::u16);
  CHECK(set.size() == tokens.size());
  CHECK(set.read_all<std::uint16_t>() == tokens);
  std::vector<std::uint16_t> part(3);
  set.read<std::uint16_t>(99999, part);
  CHECK(part == std::vector<std::uint16_t>(tokens.begin() + 99999, tokens.begin() + 100002));
  std::vector<std::uint16_t> raw(tokens.size());
  ReadFile(path).read_at(set.byte_offset(), std::as_writable_bytes(std::span(raw)));
  CHECK(raw == tokens);
  CHECK(file.dataset("offsets").read_all<std::uint64_t>() == offsets);
  CHECK(file.dataset("none").size() == 0);
  CHECK(file.dataset("none").read_all<std::uint32_t>().empty());
  CHECK(file.dataset("signed").read_all<std::int64_t>() == std::vector<std::int64_t>{-5});
  CHECK(file.text_attribute("tokenizer") == "h\xc3\xa9");
  CHECK(file.text_attribute("empty").empty());
  CHECK(file.integer_attribute("version") == 1);
  CHECK(file.integer_attribute("minus") == std::int64_t{-1} << 62);
  CHECK(file.has_attribute("version"));
  CHECK_FALSE(file.has_attribute("nope"));

  const std::string p = "[hdf5] " + path.string() + ": ";
  CHECK(error_of(Exit::data, [&] { static_cast<void>(file.dataset("nope")); }) == p + "nope: there is no such dataset");
  CHECK(error_of(Exit::data, [&] { static_cast<void>(file.text_attribute("nope")); }) ==
        p + "there is no attribute \"nope\"");
  CHECK(error_of(Exit::data, [&] { static_cast<void>(file.text_attribute("version")); }) ==
        p + "attribute \"version\" is not a text of fixed length");
  CHECK(error_of(Exit::data, [&] { static_cast<void>(file.integer_attribute("tokenizer")); }) ==
        p + "attribute \"tokenizer\" is not an i64");
  CHECK(error_of(Exit::data, [&] { static_cast<void>(set.read_all<std::uint32_t>()); }) ==
        p + "tokens: holds u16, not u32");
  CHECK(contains(error_of(Exit::data, [&] { set.read<std::uint16_t>(100001, part); }),
                 "tokens: elements 100001 to 100001 + 3 are not within its 100003"));
}

TEST_CASE("HDF5 files that are cut, missing or something else are refused") {
  TempFolder folder;
  const auto path = folder / "x.h5";
  {
    Hdf5File file = Hdf5File::create(path);
    file.create_dataset("tokens", H5Type::u32, 5000).write<std::uint32_t>(0, std::vector<std::uint32_t>(5000, 3));
    file.close();
  }
  const std::string bytes = read_file(path, 1 << 20);
  for (std::size_t cut : {std::size_t{0}, std::size_t{5}, std::size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    INFO("cut at " << cut);
    const auto cut_path = folder.put("cut.h5", bytes.substr(0, cut));
    const std::string text =
        error_of(Exit::data, [&] { static_cast<void>(Hdf5File::open(cut_path).dataset("tokens")); });
    CHECK(text.starts_with("[hdf5] " + cut_path.string() + ": is not a whole HDF5 file ("));
    if (cut >= 100) CHECK(contains(text, "truncated file"));
  }
  CHECK(contains(error_of(Exit::data, [&] { Hdf5File::open(folder.put("t.h5", "just text, and some more of it")); }),
                 "is not a whole HDF5 file"));
  CHECK(contains(error_of(Exit::data, [&] { Hdf5File::open(folder / "none.h5"); }),
                 "cannot open " + (folder / "none.h5").string()));
  CHECK(contains(error_of(Exit::data, [&] { Hdf5File::open(folder.path()); }), "is not a regular file"));
  CHECK(contains(error_of(Exit::data, [&] { Hdf5File::create(folder / "no/such/x.h5"); }), "cannot be created"));
}

TEST_CASE("an HDF5 file that does not fit is an error, also at exit") {
  TempFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{100000, 100000};  // what a full disk is to this process
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);
    const std::string text = error_of(Exit::data, [&] {
      Hdf5File file = Hdf5File::create(folder / "x.h5");
      file.create_dataset("tokens", H5Type::u32, 1000000)
          .write<std::uint32_t>(0, std::vector<std::uint32_t>(1000000, 3));
      file.close();
    });
    std::exit(contains(text, "tokens: cannot be written, 4000000 bytes wanted") ? 17
                                                                                : 18);  // with the library's clean-up
  }
  REQUIRE(child > 0);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 17);
}

TEST_CASE("one HDF5 file is read by several threads") {
  TempFolder folder;
  {
    Hdf5File file = Hdf5File::create(folder / "x.h5");
    std::vector<std::uint32_t> values(10000);
    std::iota(values.begin(), values.end(), 0u);
    file.create_dataset("tokens", H5Type::u32, values.size()).write<std::uint32_t>(0, values);
    file.close();
  }
  const Hdf5File file = Hdf5File::open(folder / "x.h5");
  const Hdf5Dataset set = file.dataset("tokens");
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::uint32_t> part(100);
      for (std::uint64_t i = 0; i < 200; ++i) {
        const std::uint64_t at = Philox{1, t}.bits64(i) % 9900;
        set.read<std::uint32_t>(at, part);
        for (std::uint64_t j = 0; j < 100; ++j) wrong[t] += part[j] != at + j;
        // a failing look-up in a thread that never opened a file prints nothing and throws
        wrong[t] += error_of(Exit::data, [&] { static_cast<void>(file.dataset("nope")); }).empty();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(std::accumulate(wrong.begin(), wrong.end(), 0) == 0);
  CHECK_FALSE(hdf5_library_version().empty());
}
