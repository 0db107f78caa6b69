// Requests to stop, turned into flags that the training loop reads once a step. Handlers only touch atomics.
//   SIGUSR1                 stop: save and exit 75 (mpirun forwards it to every rank)
//   SIGTERM                 alone or under srun: the same. Under mpirun, SIGKILL follows one second later: no time to
//   save, so the
//                           watchdog says where the rank was and leaves; the last durable checkpoint is what remains
//   SIGINT (Ctrl-C)         first: save and exit 130; second: exit 130 at once. mpirun turns Ctrl-C into SIGTERM
#pragma once

#include "core/error.h"
#include "dist/launch.h"

namespace sieve {

enum class StopReason { none, preempted, interrupted };

void install_signal_handlers(Launcher launcher);  // once, in main, before threads are started
StopReason stop_requested();                      // interrupted wins
bool termination_requested();                     // SIGTERM under mpirun
void request_stop(StopReason reason);             // max_time, tests; StopReason::none clears everything
Exit exit_of(StopReason reason);                  // ok, preempted (75), interrupted (130)

}  // namespace sieve
