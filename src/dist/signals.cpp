#include "dist/signals.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

namespace sieve {
namespace {

// Lock-free, therefore allowed in a signal handler.
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);
std::atomic<bool> preempted{false}, terminated{false};
std::atomic<bool> sigterm_is_final{false};
std::atomic<int> interrupts{0};

extern "C" void sieve_on_signal(int signal) {
  if (signal == SIGINT) {
    if (interrupts.fetch_add(1) >= 1) {
      constexpr char text[] = "\ninterrupted twice: leaving without saving\n";
      [[maybe_unused]] const auto written = write(STDERR_FILENO, text, sizeof text - 1);
      _exit(static_cast<int>(Exit::interrupted));
    }
  } else if (signal == SIGTERM && sigterm_is_final.load()) {
    terminated.store(true);
  } else {
    preempted.store(true);
  }
}

}  // namespace

void install_signal_handlers(Launcher launcher) {
  sigterm_is_final.store(launcher == Launcher::mpirun);
  struct sigaction action {};
  action.sa_handler = sieve_on_signal;
  action.sa_flags =
      SA_RESTART;  // reads and writes in progress carry on: the request is honoured at the end of the step
  sigemptyset(&action.sa_mask);
  sigset_t ours;
  sigemptyset(&ours);
  for (int signal : {SIGUSR1, SIGTERM, SIGINT}) {
    sigaddset(&ours, signal);
    if (sigaction(signal, &action, nullptr) != 0) fail(Exit::internal, "signals", "no handler for signal ", signal);
  }
  // A process inherits what its parent blocked; some launchers and job systems leave SIGUSR1 so.
  if (pthread_sigmask(SIG_UNBLOCK, &ours, nullptr) != 0) fail(Exit::internal, "signals", "cannot unblock signals");
}

StopReason stop_requested() {
  if (interrupts.load() > 0) return StopReason::interrupted;
  return preempted.load() ? StopReason::preempted : StopReason::none;
}

bool termination_requested() { return terminated.load(); }

void request_stop(StopReason reason) {
  switch (reason) {
    case StopReason::preempted: preempted.store(true); break;
    case StopReason::interrupted: interrupts.store(1); break;
    case StopReason::none:
      preempted.store(false);
      terminated.store(false);
      interrupts.store(0);
      break;
  }
}

Exit exit_of(StopReason reason) {
  switch (reason) {
    case StopReason::preempted: return Exit::preempted;
    case StopReason::interrupted: return Exit::interrupted;
    case StopReason::none: break;
  }
  return Exit::ok;
}

}  // namespace sieve
