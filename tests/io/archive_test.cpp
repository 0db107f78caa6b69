#include "io/archive.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <string>
#include <vector>

#include "helpers.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "support/catch.h"

using namespace sieve;
using namespace sieve::test;

namespace fs = std::filesystem;

// Stand in for the C library's, to see in which order files become durable. What the disk does with it no test can see.
namespace {
std::vector<std::string>* durability_log = nullptr;
}
extern "C" int fsync(int fd) {
  if (durability_log != nullptr) {
    std::error_code ignored;
    durability_log->push_back("fsync " + fs::read_symlink("/proc/self/fd/" + std::to_string(fd), ignored).string());
  }
  return static_cast<int>(::syscall(SYS_fsync, fd));
}
extern "C" int rename(const char* from, const char* to) {
  if (durability_log != nullptr) durability_log->push_back("rename " + std::string(from) + " " + to);
  return static_cast<int>(::syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to));
}

namespace {

constexpr ArchiveStage kStages[] = {ArchiveStage::begin,           ArchiveStage::file_written,
                                    ArchiveStage::file_synced,     ArchiveStage::manifest_written,
                                    ArchiveStage::manifest_synced, ArchiveStage::folder_synced,
                                    ArchiveStage::renamed,         ArchiveStage::parent_synced,
                                    ArchiveStage::remove_renamed,  ArchiveStage::link_created,
                                    ArchiveStage::link_renamed};

struct HookGuard {
  explicit HookGuard(ArchiveFaultHook hook) { set_archive_fault_hook(std::move(hook)); }
  ~HookGuard() { set_archive_fault_hook({}); }
};

ArchiveReport save(const fs::path& parent, const std::string& name, const std::string& content) {
  ArchiveWriter writer(parent, name);
  writer.write("state.json", content);
  writer.write("model.bin", std::string(1000, content[0]));
  return writer.commit();
}

// What a training run does at a save: write, point the links, delete the old.
void save_and_prune(const fs::path& parent, const std::string& name, const std::string& content) {
  save(parent, name, content);
  set_archive_link(parent, "latest", name);
  prune_archives(parent, 2, {});
}

int temporaries(const fs::path& parent) {
  int n = 0;
  for (const auto& entry : fs::directory_iterator(parent)) n += entry.path().filename().string().starts_with(".tmp-");
  return n;
}

}  // namespace

TEST_CASE("an archive is written, verified and read") {
  TempFolder folder;
  const fs::path parent = folder / "runs/x/checkpoints";
  ArchiveWriter writer(parent, "step_00000001");
  const fs::path tensors = writer.add_file("model.safetensors");
  write_safetensors(tensors, {{"a", full({8}, 1, DType::f32)}});
  writer.write("state.json", "{}");
  writer.write("empty", "");
  const std::byte raw[] = {std::byte{1}, std::byte{2}};
  writer.write("raw", std::span(raw));
  CHECK(list_archives(parent).empty());
  CHECK_FALSE(fs::exists(parent / "step_00000001"));
  const ArchiveReport report = writer.commit();
  CHECK(report.path == parent / "step_00000001");
  CHECK(report.files.size() == 4);
  CHECK(list_archives(parent) == std::vector<std::string>{"step_00000001"});
  CHECK(temporaries(parent) == 0);

  set_archive_link(parent, "latest", "step_00000001");
  const ArchiveReader reader(parent / "latest");
  CHECK(reader.path() == fs::canonical(parent / "step_00000001"));
  CHECK(reader.report().bytes == report.bytes);
  CHECK(reader.has("raw"));
  CHECK_FALSE(reader.has("manifest.json"));
  CHECK(read_file(reader.file("raw"), 10) == "\x01\x02");
  CHECK(xxh3_file(reader.file("model.safetensors")) == report.files[0].hash);
  CHECK(contains(error_of(Exit::data, [&] { reader.file("nope"); }), "the manifest lists no nope"));

  for (const char* name : {"", ".hidden", "a/b", "manifest.json", "raw"}) {
    INFO(name);
    ArchiveWriter other(parent, "other");
    other.write("raw", "");
    CHECK_FALSE(error_of(Exit::internal, [&] { other.add_file(name); }).empty());
  }
  CHECK(temporaries(parent) == 0);
}

TEST_CASE("files become durable in the one safe order") {
  TempFolder folder;
  std::vector<std::string> log;
  durability_log = &log;
  save(folder.path(), "step_1", "x");
  set_archive_link(folder.path(), "latest", "step_1");
  remove_archive(folder.path(), "step_1");
  durability_log = nullptr;
  // The temporaries' names hold process and clock: shorten them.
  const std::string parent = folder.path().string();
  for (std::string& line : log) {
    for (std::size_t at; (at = line.find(parent)) != std::string::npos;) line.replace(at, parent.size(), "P");
    for (std::size_t at = 0; (at = line.find(".tmp-", at)) != std::string::npos; ++at) {
      std::size_t end = std::min(line.find_first_of("/ ", at), line.size());
      for (int dashes = 0; dashes < 3; --end) dashes += line[end - 1] == '-';
      line.erase(end, std::min(line.find_first_of("/ ", at), line.size()) - end);
    }
  }
  CHECK(log == std::vector<std::string>{"fsync P/.tmp-step_1/state.json", "fsync P/.tmp-step_1/model.bin",
                                        "fsync P/.tmp-step_1/manifest.json", "fsync P/.tmp-step_1",
                                        "rename P/.tmp-step_1 P/step_1", "fsync P", "rename P/.tmp-latest P/latest",
                                        "fsync P", "rename P/step_1 P/.tmp-del-step_1", "fsync P"});
}

TEST_CASE("damage is located: file, block, size, manifest") {
  TempFolder folder;
  const fs::path dir = folder / "big";
  {
    ArchiveWriter writer(folder.path(), "big");
    WriteFile file(writer.add_file("model.bin"));
    const std::string piece(1 << 20, 'm');
    for (std::uint64_t written = 0; written < 2 * kArchiveBlock; written += piece.size()) file.write(piece);
    file.write("tail");
    file.close();
    writer.write("small.bin", "small");
    const ArchiveReport report = writer.commit();
    CHECK(report.files[0].blocks.size() == 3);
    CHECK(report.files[0].hash == xxh3_file(dir / "model.bin"));
  }
  CHECK(verify_archive(dir).empty());
  auto poke = [&](const char* name, std::uint64_t at, char value) {
    std::fstream file(dir / name, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(value);
  };
  poke("model.bin", kArchiveBlock + 5, 'X');
  std::vector<ArchiveDamage> damages = verify_archive(dir);
  REQUIRE(damages.size() == 1);
  CHECK(damages[0].name == "model.bin");
  CHECK(damages[0].block == 1);
  CHECK(contains(damages[0].message,
                 (dir / "model.bin").string() + ": block 1 (bytes 67108864-134217727) is damaged: hash "));
  CHECK(verify_archive(dir, ArchiveCheck::sizes).empty());
  const std::string text = error_of(Exit::data, [&] { ArchiveReader reader(dir); });
  CHECK(contains(text, dir.string() + " is damaged:\n  " + (dir / "model.bin").string() + ": block 1"));
  CHECK(ArchiveReader(dir, ArchiveCheck::sizes).has("model.bin"));

  poke("model.bin", 2 * kArchiveBlock + 1, 'X');
  poke("small.bin", 0, 'X');
  damages = verify_archive(dir);
  REQUIRE(damages.size() == 3);
  CHECK(damages[1].block == 2);
  CHECK(contains(damages[1].message, "(bytes 134217728-134217731)"));
  CHECK(damages[2].name == "small.bin");
  CHECK(damages[2].block == 0);

  fs::resize_file(dir / "model.bin", 100);
  fs::remove(dir / "small.bin");
  damages = verify_archive(dir, ArchiveCheck::sizes);
  REQUIRE(damages.size() == 2);
  CHECK(contains(damages[0].message, "100 bytes instead of 134217732"));
  CHECK(contains(damages[1].message, "No such file"));

  folder.put("big/manifest.json", "{\"format\": 2}");
  CHECK(contains(verify_archive(dir).at(0).message, "format 2, this program reads 1"));
  fs::remove(dir / "manifest.json");
  CHECK(contains(verify_archive(dir).at(0).message, "cannot open"));
  CHECK(contains(verify_archive(folder / "none").at(0).message, "there is no such folder"));
}

TEST_CASE("the last good archive is found behind damaged ones") {
  TempFolder folder;
  for (const char* name : {"step_1", "step_2", "step_3"}) save(folder.path(), name, name);
  folder.put("step_3/state.json", "steq_3");
  fs::remove(folder / "step_2/model.bin");
  std::vector<std::string> damaged;
  CHECK(last_good_archive(folder.path(), ArchiveCheck::hashes, &damaged) == folder / "step_1");
  CHECK(damaged == std::vector<std::string>{"step_3", "step_2"});
  CHECK(last_good_archive(folder.path(), ArchiveCheck::sizes) == folder / "step_3");
  CHECK(last_good_archive(folder / "none").empty());
}

TEST_CASE("pruning, links and stale temporaries") {
  TempFolder folder(true);
  for (int i = 1; i <= 5; ++i) save(folder.path(), "step_" + std::to_string(i), "x");
  const auto removed = prune_archives(folder.path(), 2, [](const std::string& name) { return name == "step_2"; });
  CHECK(removed == std::vector<std::string>{"step_1", "step_3"});
  CHECK(list_archives(folder.path()) == std::vector<std::string>{"step_2", "step_4", "step_5"});

  CHECK(read_archive_link(folder.path(), "latest").empty());
  set_archive_link(folder.path(), "latest", "step_4");
  set_archive_link(folder.path(), "latest", "step_5");
  CHECK(read_archive_link(folder.path(), "latest") == "step_5");
  remove_archive(folder.path(), "step_5");
  CHECK(read_archive_link(folder.path(), "latest").empty());  // dangling
  CHECK(contains(error_of(Exit::data, [&] { remove_archive(folder.path(), "step_5"); }), "cannot rename"));

  fs::create_directories(folder / ".tmp-step_6-1-2-3/deep");
  folder.put(".tmp-latest-1", "");
  CHECK(clean_stale_archives(folder.path()) == 2);
  CHECK(clean_stale_archives(folder.path()) == 0);
  CHECK(clean_stale_archives(folder / "none") == 0);
  CHECK(list_archives(folder.path()) == std::vector<std::string>{"step_2", "step_4"});
}

TEST_CASE("a second archive of one name replaces the first") {
  TempFolder folder(true);
  save(folder.path(), "step_1", "old");
  save(folder.path(), "step_1", "new");
  CHECK(read_file(ArchiveReader(folder / "step_1").file("state.json"), 10) == "new");
  CHECK(temporaries(folder.path()) == 0);
}

TEST_CASE("a failure at any stage leaves older archives and no temporary") {
  for (ArchiveStage stage : kStages) {
    if (stage >= ArchiveStage::renamed) continue;
    for (const char* name : {"step_2", "step_1"}) {  // a new one, and one that would replace the old
      TempFolder folder(true);
      save(folder.path(), "step_1", "old");
      bool reached = false;
      const HookGuard guard([&](ArchiveStage at, const fs::path& path) {
        if (at == stage) reached = true, fail(Exit::data, "test", "disk full at ", path.string());
      });
      CHECK(contains(error_of(Exit::data, [&] { save(folder.path(), name, "new"); }), "disk full at"));
      CHECK(reached);
      CHECK(list_archives(folder.path()) == std::vector<std::string>{"step_1"});
      CHECK(read_file(ArchiveReader(folder / "step_1").file("state.json"), 10) == "old");
      // A throw in the constructor comes before there is an object to clean up after itself; the next start does it.
      CHECK(temporaries(folder.path()) == (stage == ArchiveStage::begin ? 1 : 0));
    }
  }
}

TEST_CASE("a full disk names path, need and space, and keeps the old checkpoint") {
  TempFolder folder(true);
  save(folder.path(), "step_1", "old");
  {
    ArchiveWriter writer(folder.path(), "step_2");
    const fs::path path = writer.add_file("model.safetensors");
    fs::create_symlink("/dev/full", path);  // a device that is always full
    const std::string text = error_of(Exit::data, [&] { write_safetensors(path, {{"a", zeros({1000}, DType::f32)}}); });
    INFO(text);
    CHECK(contains(text, "cannot write " + path.string() + ": No space left on device (4"));
    CHECK(contains(text, " bytes still to write, "));
    CHECK(contains(text, " bytes free); free some space"));
  }
  CHECK(temporaries(folder.path()) == 0);
  CHECK(verify_archive(folder / "step_1").empty());
  const std::string text = error_of(Exit::data, [&] { ArchiveWriter writer(folder.path(), "step_2", 1ull << 60); });
  INFO(text);
  CHECK(
      contains(text, "not enough space for " + (folder / "step_2").string() + ": 1152921504606846976 bytes needed, "));
  CHECK(temporaries(folder.path()) == 0);
}

TEST_CASE("a kill at any stage leaves only whole archives") {
  int kills = 0;
  for (ArchiveStage stage : kStages) {
    for (const char* name : {"step_3", "step_2"}) {  // a new one, and one in the place of an old one
      for (int occurrence = 0; occurrence < 2; ++occurrence) {
        TempFolder folder(true);
        save_and_prune(folder.path(), "step_1", "1st");
        save_and_prune(folder.path(), "step_2", "2nd");
        const pid_t child = ::fork();
        if (child == 0) {
          int seen = 0;
          set_archive_fault_hook([&](ArchiveStage at, const fs::path&) {
            if (at == stage && seen++ == occurrence) ::kill(::getpid(), SIGKILL);
          });
          save_and_prune(folder.path(), name, "3rd");
          ::_exit(0);
        }
        REQUIRE(child > 0);
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        kills += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;

        INFO("stage " << static_cast<int>(stage) << ", " << name);
        const bool renamed = stage >= ArchiveStage::renamed || WIFEXITED(status);
        const std::vector<std::string> names = list_archives(folder.path());
        for (const std::string& n : names) CHECK(verify_archive(folder / n).empty());  // nothing half
        REQUIRE(fs::exists(folder / "step_2"));
        CHECK(fs::exists(folder / "step_3") == (renamed && name == std::string("step_3")));
        if (!renamed) CHECK(fs::exists(folder / "step_1"));
        const std::string content = read_file(ArchiveReader(folder / "step_2").file("state.json"), 10);
        CHECK(content == (renamed && name == std::string("step_2") ? "3rd" : "2nd"));
        const std::string latest = read_archive_link(folder.path(), "latest");
        CHECK((latest == "step_2" || latest == "step_3"));
        CHECK(verify_archive(folder / "latest").empty());
        clean_stale_archives(folder.path());
        CHECK(temporaries(folder.path()) == 0);
        CHECK(list_archives(folder.path()) == names);
      }
    }
  }
  // Every stage kills at its first occurrence (remove_renamed only where step_3 makes three); two files are written and
  // synced, the folder of a replaced archive is removed without a second rename.
  CHECK(kills == 2 * 11 - 1 + 2 * 2);
}
