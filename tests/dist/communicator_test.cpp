// Collectives on threads as ranks and in a world of one; how a launcher is recognised.
#include "dist/communicator.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <string>

#include "core/build.h"
#include "dist/launch.h"
#include "dist/step_summary.h"
#include "dist/thread_communicator.h"
#include "support/catch.h"
#include "support/errors.h"

using namespace sieve;
using sieve::test::contains;
using sieve::test::error_text;
using sieve::testing::run_ranks;

namespace {

Launch launch_of(const std::map<std::string, std::string>& environment) {
  return detect_launch([&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

}  // namespace

TEST_CASE("collectives deliver whole numbers exactly") {
  for (int ranks : {1, 2, 3, 4}) {
    CAPTURE(ranks);
    run_ranks(ranks, [](Communicator& comm) {
      const int r = comm.rank(), n = comm.size();
      for (DType dtype : {DType::f32, DType::f64, DType::i32, DType::i64}) {
        Tensor sum = full({3, 2}, r + 1, dtype), max = full({3, 2}, r + 1, dtype);
        comm.all_reduce(sum, ReduceOp::sum, "sum");
        comm.all_reduce(max, ReduceOp::max, "max");
        require(sum.to(DType::f64).slice(0, 2, 3).slice(1, 1, 2).item() == n * (n + 1) / 2, "test", "sum");
        require(max.to(DType::f64).slice(0, 0, 1).slice(1, 0, 1).item() == n, "test", "max");
      }
      Tensor text = full({5}, r, DType::u8);
      comm.broadcast(text, n - 1, "bytes");
      require(text.to(DType::f64).slice(0, 4, 5).item() == n - 1, "test", "broadcast");
      const Tensor all = comm.all_gather(full({2}, r * 10, DType::bf16), "rows");
      require(all.shape() == Shape{n, 2}, "test", "all_gather shape ", all.shape());
      for (int i = 0; i < n; ++i) require(all.slice(0, i, i + 1).slice(1, 1, 2).item() == i * 10, "test", "all_gather");
      comm.barrier("here");
      require(comm.all_reduce(std::int64_t{r}, ReduceOp::max, "rank") == n - 1, "test", "max of ranks");
      require(comm.all_reduce(0.5, ReduceOp::sum, "halves") == 0.5 * n, "test", "sum of halves");
      require(comm.any(r == n - 1, "last") && !comm.any(false, "none"), "test", "any");
      require(comm.all_gather(std::int64_t{r}, "ranks").back() == n - 1, "test", "gathered ranks");
      const std::string word =
          comm.broadcast(r == 0 ? "from rank 0" : "something much longer from another rank", 0, "word");
      require(word == "from rank 0", "test", "broadcast of text: ", word);
      require(comm.broadcast(std::string(), 0, "empty").empty(), "test", "empty text");
      if (n > 1 && (r ^ 1) < n) {
        Tensor recv = empty({r + 2}, DType::i32);  // sizes differ: the lower rank of a pair sends one more
        comm.exchange(full({(r ^ 1) + 2}, r, DType::i32), recv, r ^ 1, "pair");
        require(recv.slice(0, 0, 1).item() == (r ^ 1), "test", "exchange");
      }
    });
  }
}

TEST_CASE("wrong arguments fail before anything is sent") {
  SelfCommunicator comm;
  Tensor undefined, matrix = zeros({3, 4}, DType::f32), half = zeros({3}, DType::bf16);
  Tensor strided = matrix.transpose(0, 1);
  REQUIRE_THROWS_AS(comm.all_reduce(undefined, ReduceOp::sum, "x"), Error);
  REQUIRE_THROWS_AS(comm.all_reduce(half, ReduceOp::sum, "x"), Error);
  REQUIRE_THROWS_AS(comm.all_reduce(strided, ReduceOp::sum, "x"), Error);
  REQUIRE_THROWS_AS(comm.broadcast(matrix, 1, "x"), Error);
  REQUIRE_THROWS_AS(comm.exchange(matrix, matrix, 0, "x"), Error);
  REQUIRE(
      contains(error_text([&] { comm.all_reduce(half, ReduceOp::sum, "bucket 3"); }), "all_reduce(bucket 3) of bf16"));
}

TEST_CASE("a second thread in a collective is refused, and abandon() ends a wait") {
  auto world = std::make_shared<sieve::testing::ThreadWorld>(2);
  sieve::testing::ThreadCommunicator comm(world, 0);  // rank 1 never comes
  std::string waited;
  std::thread waiter([&] { waited = error_text([&] { comm.barrier("lonely"); }); });
  while (comm.progress().where().find("lonely") == std::string::npos) std::this_thread::yield();
  // The scope opens just before the flag is taken; whoever is second must be told.
  std::string second;
  for (int i = 0; i < 1000 && second.empty(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::unique_lock lock(world->mutex);
    if (world->waiting == 0) continue;
    lock.unlock();
    second = error_text([&] { (void)comm.all_gather(1.0, "intruder"); });
  }
  REQUIRE(contains(second, "all_gather(intruder) while another thread is in a collective"));
  REQUIRE(contains(second, "barrier(lonely)"));
  comm.abandon();
  waiter.join();
  REQUIRE(contains(waited, "gave up waiting in barrier(lonely)"));
  REQUIRE(contains(error_text([&] { comm.barrier("later"); }), "given up"));
}

TEST_CASE("progress names what is open, across threads and in any order of closing") {
  Progress progress;
  REQUIRE(progress.where() == "no named operation");
  auto train = std::make_unique<Progress::Scope>(progress, "train");
  auto reduce = std::make_unique<Progress::Scope>(progress, "all_reduce(bucket 3)");
  progress.set_step(1200);
  REQUIRE(progress.where() == "train > all_reduce(bucket 3), step 1200");
  train.reset();
  REQUIRE(progress.where() == "all_reduce(bucket 3), step 1200");
  const auto before = progress.beats();
  reduce.reset();
  REQUIRE(progress.beats() > before);
}

TEST_CASE("the launcher is recognised from its environment") {
  REQUIRE(launch_of({}).launcher == Launcher::none);
  const Launch open_mpi = launch_of({{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "3"}});
  REQUIRE(open_mpi.launcher == Launcher::mpirun);
  REQUIRE(open_mpi.rank == 3);
  REQUIRE(open_mpi.size == 4);
  const Launch slurm =
      launch_of({{"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_PROCID", "1"}, {"PMI_SIZE", "2"}, {"PMI_RANK", "1"}});
  REQUIRE(slurm.launcher == Launcher::srun);
  REQUIRE(slurm.size == 2);
  const Launch mpich =
      launch_of({{"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_PROCID", "0"}, {"PMI_SIZE", "8"}, {"PMI_RANK", "5"}});
  REQUIRE(mpich.launcher == Launcher::mpirun);
  REQUIRE(mpich.size == 8);
  REQUIRE(launch_of({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}}).launcher ==
          Launcher::none);  // inside a batch script
  REQUIRE_THROWS_AS(launch_of({{"OMPI_COMM_WORLD_SIZE", "4"}}), Error);
  REQUIRE_THROWS_AS(launch_of({{"OMPI_COMM_WORLD_SIZE", "four"}, {"OMPI_COMM_WORLD_RANK", "0"}}), Error);
  REQUIRE_THROWS_AS(launch_of({{"OMPI_COMM_WORLD_SIZE", "0"}, {"OMPI_COMM_WORLD_RANK", "0"}}), Error);
  REQUIRE_THROWS_AS(launch_of({{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", "2"}}), Error);
}

TEST_CASE("a process that nobody launched is a world of one and a launched one never is silently") {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}) unsetenv(name);
  const auto comm = make_communicator();
  REQUIRE(comm->size() == 1);
  REQUIRE(comm->backend() == "self");
  if constexpr (!build::with_mpi) {  // with MPI: tests/mpi/no_start.sh
    setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
    setenv("OMPI_COMM_WORLD_RANK", "1", 1);
    const std::string message = error_text([] { (void)make_communicator(); });
    unsetenv("OMPI_COMM_WORLD_SIZE");
    unsetenv("OMPI_COMM_WORLD_RANK");
    REQUIRE(contains(message, "started as rank 1 of 2, but this program was built without MPI"));
  }
}

TEST_CASE("a step summary adds what is to be added and spreads flags") {
  run_ranks(4, [](Communicator& comm) {
    StepSummary mine;
    mine.loss_sum = 0.1 * (comm.rank() + 1);
    mine.tokens = std::int64_t{1} << 40;
    mine.squared_norm = 2.5;
    mine.flags.stop = comm.rank() == 3;
    mine.flags.nonfinite = comm.rank() >= 1 && comm.rank() <= 2;
    const StepSummary all = reduce_step_summary(comm, mine);
    require(all.loss_sum == (0.1 * 1 + 0.1 * 2) + (0.1 * 3 + 0.1 * 4), "test", "loss ", all.loss_sum);
    require(all.tokens == std::int64_t{1} << 42, "test", "tokens ", all.tokens);
    require(all.squared_norm == 2.5, "test", "norm ", all.squared_norm);
    require(all.flags == StepFlags{true, false, true, false}, "test", "flags");
    require(all.flagged_rank == 1, "test", "flagged rank ", all.flagged_rank);
  });
}

TEST_CASE("replicas that drifted apart are found, on every rank") {
  std::atomic<int> found = 0;
  run_ranks(3, [&](Communicator& comm) {
    StepSummary mine;
    mine.squared_norm = comm.rank() == 2 ? std::nextafter(1.0, 2.0) : 1.0;
    const std::string message = error_text([&] { (void)reduce_step_summary(comm, mine); });
    if (contains(message, "rank 2 holds another gradient than rank 0")) ++found;
  });
  REQUIRE(found == 3);
  run_ranks(2, [](Communicator& comm) {  // NaN everywhere is one and the same opinion
    StepSummary mine;
    mine.squared_norm = std::numeric_limits<double>::quiet_NaN();
    require(std::isnan(reduce_step_summary(comm, mine).squared_norm), "test", "nan");
  });
}
