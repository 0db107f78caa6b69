// The watchdog, the ways out and the stop flags. Processes that must end are forked.
#include "dist/watchdog.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <thread>

#include "core/build.h"
#include "core/log.h"
#include "dist/die.h"
#include "dist/signals.h"
#include "support/catch.h"
#include "support/errors.h"

using namespace sieve;
using sieve::test::contains;

namespace {

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

struct Ended {
  int status;       // of waitpid
  std::string err;  // what it wrote to stderr
};

// f in a child process with its own stderr; `send` gives it signals.
Ended in_child(const std::function<void()>& f, const std::function<void(pid_t)>& send = {}) {
  int pipe_ends[2];
  REQUIRE(pipe(pipe_ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(pipe_ends[1], STDERR_FILENO);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    f();
    _exit(99);
  }
  close(pipe_ends[1]);
  if (send) send(child);
  Ended ended{};
  char buffer[4096];
  for (ssize_t n; (n = read(pipe_ends[0], buffer, sizeof buffer)) > 0;)
    ended.err.append(buffer, static_cast<std::size_t>(n));
  close(pipe_ends[0]);
  REQUIRE(waitpid(child, &ended.status, 0) == child);
  return ended;
}

// ThreadSanitizer stops following a child forked beside other threads: no new threads there, signals held back. Such
// threads are the workers of parallel_for that an earlier case left asleep; alone, as ctest runs it, a case forks
// safely.
bool can_fork_or_note_skip() {
  if constexpr (std::string_view(build::sanitize) != "thread") return true;
  const Ended child = in_child([] {
    std::thread([] {}).join();
    _exit(0);
  });
  if (WIFEXITED(child.status) && WEXITSTATUS(child.status) == 0) return true;
  // tests/CMakeLists.txt looks for the first two words.
  std::puts("skipped: ThreadSanitizer cannot follow a fork beside other threads");
  return false;
}

}  // namespace

TEST_CASE("the watchdog reports rank, operation and step when nothing moves") {
  Progress progress;
  progress.set_step(1200);
  Progress::Scope scope(progress, "all_reduce(bucket 3)");
  std::atomic<int> calls = 0;
  std::string reason;
  const auto begin = std::chrono::steady_clock::now();
  {
    Watchdog dog(progress, 2, 0.5, [&](Exit code, const std::string& text) {
      if (code == Exit::peer) reason = text;
      ++calls;
    });
    while (calls == 0 && std::chrono::steady_clock::now() - begin < std::chrono::seconds(10)) sleep_ms(5);
    sleep_ms(300);
  }
  REQUIRE(calls == 1);
  REQUIRE(reason == "rank 2: no progress for 0.5 s in all_reduce(bucket 3), step 1200");
}

TEST_CASE("heartbeats keep the watchdog quiet, and it stops at once") {
  Progress progress;
  std::atomic<int> calls = 0;
  {
    Watchdog dog(progress, 0, 1.5, [&](Exit, const std::string&) { ++calls; });
    for (int i = 0; i < 60; ++i) {
      sleep_ms(40);
      progress.beat();
    }
  }
  REQUIRE(calls == 0);
  const auto begin = std::chrono::steady_clock::now();
  { Watchdog idle(progress, 0, 1000); }
  REQUIRE(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  REQUIRE_THROWS_AS(Watchdog(progress, 0, 0), Error);
}

TEST_CASE("time in which the process was stopped does not count") {
  if (!can_fork_or_note_skip()) return;
  const Ended ended = in_child(
      [] {
        Progress progress;
        Watchdog dog(progress, 0, 1.5);
        sleep_ms(200);
        sleep_ms(100);  // stopped for 2.5 s somewhere in here
        progress.beat();
        _exit(0);
      },
      [](pid_t child) {
        sleep_ms(150);
        kill(child, SIGSTOP);
        sleep_ms(2500);
        kill(child, SIGCONT);
      });
  CAPTURE(ended.err);
  REQUIRE(WIFEXITED(ended.status));
  REQUIRE(WEXITSTATUS(ended.status) == 0);
}

TEST_CASE("die() leaves its reason and the exit code, past destructors and from a hanging main thread") {
  if (!can_fork_or_note_skip()) return;
  struct Loud {
    ~Loud() { _exit(98); }
  };
  Ended ended = in_child([] {
    Loud loud;
    log_init(1, LogLevel::info);
    die(Exit::data, "[store] two\nlines");
  });
  REQUIRE(WIFEXITED(ended.status));
  REQUIRE(WEXITSTATUS(ended.status) == 3);
  REQUIRE(contains(ended.err, "[rank 1] [store] two\n[rank 1] lines\n"));
  ended = in_child([] {
    Progress progress;
    Progress::Scope scope(progress, "backward");
    Watchdog dog(progress, 1, 0.3);
    for (;;) pause();
  });
  REQUIRE(WIFEXITED(ended.status));
  REQUIRE(WEXITSTATUS(ended.status) == 6);
  REQUIRE(contains(ended.err, "rank 1: no progress for 0.3 s in backward"));
}

TEST_CASE("a dying rank does not wait for a log that nobody reads") {
  const auto begin = std::chrono::steady_clock::now();
  int full[2];
  REQUIRE(pipe(full) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(full[1], STDERR_FILENO);
    const std::string text(1 << 20, 'x');
    die(Exit::peer, text);  // the pipe holds 64 KiB
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  close(full[0]);
  close(full[1]);
  REQUIRE(WIFSIGNALED(status));
  REQUIRE(std::chrono::steady_clock::now() - begin < std::chrono::seconds(9));
}

TEST_CASE("signals become flags") {
  request_stop(StopReason::none);
  sigset_t inherited;  // a launcher may have blocked what is meant for us
  sigemptyset(&inherited);
  sigaddset(&inherited, SIGUSR1);
  REQUIRE(pthread_sigmask(SIG_BLOCK, &inherited, nullptr) == 0);
  install_signal_handlers(Launcher::none);
  REQUIRE(stop_requested() == StopReason::none);
  raise(SIGUSR1);
  REQUIRE(stop_requested() == StopReason::preempted);
  REQUIRE(exit_of(stop_requested()) == Exit::preempted);
  request_stop(StopReason::none);
  raise(SIGTERM);
  REQUIRE(stop_requested() == StopReason::preempted);
  REQUIRE_FALSE(termination_requested());
  raise(SIGINT);
  REQUIRE(exit_of(stop_requested()) == Exit::interrupted);
  request_stop(StopReason::none);
  REQUIRE(exit_of(stop_requested()) == Exit::ok);
  request_stop(StopReason::preempted);
  REQUIRE(stop_requested() == StopReason::preempted);
  request_stop(StopReason::none);
}

TEST_CASE("a second Ctrl-C leaves at once and SIGTERM under mpirun is spoken about and final") {
  if (!can_fork_or_note_skip()) return;
  Ended ended = in_child([] {
    install_signal_handlers(Launcher::none);
    raise(SIGINT);
    raise(SIGINT);
  });
  REQUIRE(WIFEXITED(ended.status));
  REQUIRE(WEXITSTATUS(ended.status) == 130);
  REQUIRE(contains(ended.err, "without saving"));
  ended = in_child([] {
    install_signal_handlers(Launcher::mpirun);
    Progress progress;
    progress.set_step(7);
    Progress::Scope scope(progress, "barrier(checkpoint)");
    Watchdog dog(progress, 1, 100);
    raise(SIGTERM);
    for (;;) pause();
  });
  REQUIRE(WIFEXITED(ended.status));
  REQUIRE(WEXITSTATUS(ended.status) == 6);
  REQUIRE(contains(ended.err, "rank 1: ended by SIGTERM"));
  REQUIRE(contains(ended.err, "in barrier(checkpoint), step 7"));
}
