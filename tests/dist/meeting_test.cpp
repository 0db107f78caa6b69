// Ranks that meet in a folder, and what they hear where that cannot be.
#include "dist/meeting.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "core/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/scratch.h"

using namespace sieve;
using sieve::test::contains;
using sieve::test::Scratch;

namespace {

Launch rank_of(int rank, int size, const std::string& job = "") {
  Launch launch;
  launch.rank = rank;
  launch.size = size;
  launch.job = job;
  return launch;
}

// What a rank hears that waits a tenth of a second.
std::string heard(const Launch& launch, const std::filesystem::path& folder) {
  try {
    meet_in_folder(launch, folder, 0.1, [] { return std::string("id"); });
  } catch (const Error& e) {
    CHECK(e.code() == Exit::peer);
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("ranks that meet in a folder get the bytes of rank 0") {
  const Scratch folder;
  const std::string message("\0line\nline\xff", 11);
  std::string got;
  std::thread second(
      [&] { got = meet_in_folder(rank_of(1, 2, "7.0"), folder.path(), 20, [] { return std::string(); }); });
  const std::string sent = meet_in_folder(rank_of(0, 2, "7.0"), folder.path(), 20, [&] { return message; });
  second.join();
  CHECK(sent == message);
  CHECK(got == message);
  clear_meeting(folder.path());
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("a meeting folder that is missing or none is named") {
  const Scratch folder;
  for (int rank : {0, 1}) {
    const std::string missing = heard(rank_of(rank, 2), folder / "nowhere");
    CHECK(contains(missing, "nowhere"));
    CHECK(contains(missing, "there is no folder"));
    CHECK(contains(missing, "mkdir"));
    std::ofstream(folder / "file") << "text";
    CHECK(contains(heard(rank_of(rank, 2), folder / "file"), "is no folder"));
  }
}

TEST_CASE("a meeting folder that rank 0 may not write to is named") {
  const std::string text = heard(rank_of(0, 2), "/proc");  // where even root makes no file
  CHECK(contains(text, "/proc/nccl_id.tmp cannot be written"));
  CHECK(contains(text, "rank 0"));
}

TEST_CASE("a meeting file of another run is refused on every rank") {
  const Scratch folder;
  const auto leave = [&](const Launch& launch) {
    clear_meeting(folder.path());
    meet_in_folder(launch, folder.path(), 1, [] { return std::string("old"); });
  };
  leave(rank_of(0, 4));
  CHECK(contains(heard(rank_of(0, 2), folder.path()), "left from an earlier run"));
  const std::string size = heard(rank_of(1, 2), folder.path());
  CHECK(contains(size, "remove it"));
  CHECK(contains(size, "4 ranks"));
  leave(rank_of(0, 2, "17.0"));
  CHECK(contains(heard(rank_of(1, 2, "18.0"), folder.path()), "job 17.0"));
  leave(rank_of(0, 2));
  CHECK(heard(rank_of(1, 2), folder.path()).empty());
  const auto file = folder / "nccl_id";
  std::filesystem::last_write_time(file, std::filesystem::last_write_time(file) - std::chrono::minutes(10));
  CHECK(contains(heard(rank_of(1, 2), folder.path()), "left from an earlier run"));
}

TEST_CASE("a rank that waits for rank 0 in vain says where and how long") {
  const Scratch folder;
  const std::string text = heard(rank_of(1, 2), folder.path());
  CHECK(contains(text, folder.path()));
  CHECK(contains(text, "after 0.1 s"));
  CHECK(contains(text, "has rank 0 started"));
}
