#include "train/run_lock.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "core/log.h"
#include "io/json.h"
#include "support/catch.h"
#include "support/scratch.h"
#include "train/run_folder.h"

using namespace sieve;
using sieve::test::Scratch;

TEST_CASE("one run at a time in a folder") {
  const Scratch scratch;
  const auto folder = scratch / "run";
  {
    const RunLock first(folder);
    CHECK(first.held());
    std::string message;
    try {
      const RunLock second(folder);
    } catch (const Error& e) {
      CHECK(e.code() == Exit::config);
      message = e.what();
    }
    CHECK(message.find(folder.string() + " is in use by process " + std::to_string(getpid()) + " on ") !=
          std::string::npos);
    CHECK(RunFolder(folder).choose_checkpoint("never").empty());  // a lock is no content
    std::ofstream(folder / "file") << "x";
    CHECK_THROWS_AS(RunFolder(folder).choose_checkpoint("never"), Error);
  }
  CHECK(std::filesystem::exists(folder / "file"));
  CHECK_FALSE(std::filesystem::exists(folder / RunLock::kFileName));
  RunLock again(folder);
  RunLock moved = std::move(again);
  CHECK(moved.held());
  CHECK_FALSE(again.held());
  moved = RunLock();
  CHECK_FALSE(moved.held());
  CHECK(RunLock(folder).held());
}

TEST_CASE("a lock that came to nothing leaves no folder") {
  const Scratch scratch;
  { const RunLock lock(scratch / "new"); }
  CHECK_FALSE(std::filesystem::exists(scratch / "new"));
  std::filesystem::create_directory(scratch / "old");
  { const RunLock lock(scratch / "old"); }
  CHECK(std::filesystem::exists(scratch / "old"));
}

TEST_CASE("the kernel lets go of a dead process's lock") {
  const Scratch scratch;
  const auto folder = scratch / "run";
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const pid_t child = fork();
  if (child == 0) {
    const RunLock lock(folder);
    const char told = lock.held() ? 'y' : 'n';
    if (write(ready[1], &told, 1) != 1) _exit(1);
    pause();
    _exit(0);
  }
  char told = 0;
  REQUIRE(read(ready[0], &told, 1) == 1);
  CHECK(told == 'y');
  CHECK_THROWS_AS(RunLock(folder), Error);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  CHECK(std::filesystem::exists(folder / RunLock::kFileName));
  CHECK(RunLock(folder).held());
  close(ready[0]);
  close(ready[1]);
}

TEST_CASE("the last word of a dying process") {
  const Scratch scratch;
  const auto file = scratch / "status.json";
  leave_status_failed(file, Exit::peer, "nothing there");
  CHECK_FALSE(std::filesystem::exists(file));
  StatusFile(file, 0).write({"running", 7, 10, 70, 1.5, -1, ""});
  leave_status_failed(file, Exit::peer, "rank 0: no progress");
  const Json failed = read_json(file);
  CHECK(failed["status"] == "failed");
  CHECK(failed["exit_code"] == 6);
  CHECK(failed["message"] == "rank 0: no progress");
  CHECK(failed["step"] == 7);
  // Neither a run that ended nor another process's is touched.
  StatusFile(file, 0).write({"finished", 10, 10, 100, 1.5, 0, ""});
  leave_status_failed(file, Exit::peer, "too late");
  CHECK(read_json(file)["status"] == "finished");
  Json other = failed;
  other["status"] = "running";
  other["pid"] = getpid() + 1;
  write_json(file, other);
  leave_status_failed(file, Exit::peer, "not mine");
  CHECK(read_json(file)["status"] == "running");
}
