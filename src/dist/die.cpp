#include "dist/die.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <string>

#include "core/log.h"

namespace sieve {

void die(Exit code, std::string_view reason) {
  static std::atomic_flag dying = ATOMIC_FLAG_INIT;
  if (dying.test_and_set()) {
    for (;;) pause();  // the first caller is on its way out; its reason is the cause, ours a consequence
  }
  // A log on a full pipe or a dead file server must not keep a dying rank alive: its peers wait for it.
  std::signal(SIGALRM, SIG_DFL);
  alarm(5);
  // A record of its own for every line, so that each carries its rank and can be told from those of other ranks.
  for (std::size_t at = 0; at <= reason.size();) {
    const std::size_t end = std::min(reason.size(), reason.find('\n', at));
    std::string line(reason.substr(at, end - at));
    std::replace(line.begin(), line.end(), '\r', ' ');
    log_error(line);
    at = end + 1;
  }
  log_flush();
  std::fflush(stdout);
  usleep(50'000);  // mpirun drops what is still in a rank's pipe once that rank is gone: let it read the line first
  _exit(static_cast<int>(code));
}

}  // namespace sieve
