// The small numbers of a step, reduced together, so that no rank ever branches around a collective on its own opinion.
#pragma once

#include <cstdint>

namespace sieve {

class Communicator;

struct StepFlags {
  bool stop = false;       // SIGTERM, SIGUSR1 or max_time: save and exit 75
  bool interrupt = false;  // Ctrl-C: save and exit 130
  bool nonfinite = false;  // loss or gradient is not finite
  bool error = false;      // this rank failed in a way that it could survive (a data error): all end together
  bool operator==(const StepFlags&) const = default;
};

struct StepSummary {
  double loss_sum =
      0;  // of this rank's tokens: TreeSum over its micro-batches; then of all ranks, by the tree of dist/tree.h
  std::int64_t tokens = 0;  // likewise; exact
  double squared_norm =
      0;  // of the reduced gradient, which every rank holds whole: the same bits everywhere, else Error(Exit::peer)
  StepFlags flags;        // then: set where any rank set it
  int flagged_rank = -1;  // out only: lowest rank that set nonfinite or error
};

// Returns the same on every rank. One collective.
StepSummary reduce_step_summary(Communicator& comm, const StepSummary& mine);

}  // namespace sieve
