// The numbers that decide a step, and how ranks that know no MPI find each other.
#include <cmath>
#include <limits>
#include <map>

#include "dist/kernels/kernels.h"
#include "dist/launch.h"
#include "dist/watchdog.h"
#include "support/catch.h"
#include "tensor/tensor.h"

using namespace sieve;

namespace {

struct Decision {
  float scale, forbidden;
};

Decision decide(std::vector<double> losses, double tokens, double squared_norm, double clip) {
  double totals[2];
  float control[2];
  launch(
      {},
      StepTotalsArgs{
          .losses = losses.data(), .n = static_cast<std::int64_t>(losses.size()), .tokens = tokens, .totals = totals});
  launch({}, StepControlArgs{.totals = totals, .squared_norm = &squared_norm, .clip = clip, .control = control});
  return {control[0], control[1]};
}

Launch launched(const std::map<std::string, const char*>& environment) {
  return detect_launch([&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second;
  });
}

}  // namespace

TEST_CASE("a step's gradient is averaged over tokens, clipped, or forbidden") {
  CHECK(decide({1, 2}, 8, 4, 0).scale == 0.125f);
  CHECK(decide({1, 2}, 8, 4, 0.25).scale == 0.125f);    // its norm is 0.25
  CHECK(decide({1, 2}, 8, 4, 0.125).scale == 0.0625f);  // twice too long
  CHECK(decide({}, 0, 0, 1).scale == 1.f);              // no tokens: nothing to divide by
  CHECK(decide({1, 2}, 8, 4, 1).forbidden == 0.f);
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  CHECK(decide({1, nan}, 8, 4, 1).forbidden == 1.f);
  CHECK(decide({-inf}, 8, 4, 1).forbidden == 1.f);
  CHECK(decide({1}, 8, nan, 1).forbidden == 1.f);
  CHECK(decide({1}, 8, inf, 1).forbidden == 1.f);
}

TEST_CASE("ranks that meet in a folder are told by the launcher or by hand") {
  const Launch slurm = launched({{"SIEVE_NCCL_INIT", "file:/shared/job7"},
                                 {"SLURM_STEP_NUM_TASKS", "8"},
                                 {"SLURM_PROCID", "5"},
                                 {"SLURM_JOB_ID", "31"},
                                 {"SLURM_STEP_ID", "2"},
                                 {"SLURM_LOCALID", "1"}});
  CHECK(slurm.job == "31.2");
  CHECK(slurm.meeting_folder == "/shared/job7");
  CHECK(slurm.size == 8);
  CHECK(slurm.rank == 5);
  CHECK(slurm.local_rank == 1);
  const Launch hand =
      launched({{"SIEVE_NCCL_INIT", "file:x"}, {"SIEVE_RANK", "1"}, {"SIEVE_WORLD_SIZE", "2"}, {"SLURM_STEP_ID", "2"}});
  CHECK(hand.job.empty());  // each rank may be a step of its own
  CHECK(hand.size == 2);
  CHECK(hand.rank == 1);
  CHECK(launched({{"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_PROCID", "5"}}).meeting_folder.empty());
  CHECK_THROWS_AS(launched({{"SIEVE_NCCL_INIT", "/shared"}}), Error);
  CHECK_THROWS_AS(launched({{"SIEVE_NCCL_INIT", "file:x"}, {"SIEVE_RANK", "2"}, {"SIEVE_WORLD_SIZE", "2"}}), Error);
}

TEST_CASE("the watchdog hears of faults that no thread is waiting for") {
  Progress progress;
  std::mutex mutex;
  std::condition_variable told;
  std::string reason;
  Watchdog watchdog(progress, 3, 60, [&](Exit, const std::string& why) {
    const std::lock_guard lock(mutex);
    reason = why;
    told.notify_all();
  });
  const Progress::Scope scope(progress, "train");
  progress.monitor([] { return std::string("nccl: a link is down"); });
  std::unique_lock lock(mutex);
  REQUIRE(told.wait_for(lock, std::chrono::seconds(5), [&] { return !reason.empty(); }));
  CHECK(reason == "rank 3: nccl: a link is down in train");
}
