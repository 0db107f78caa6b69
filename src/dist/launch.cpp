#include "dist/launch.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "core/error.h"

namespace sieve {
namespace {

using Environment = std::function<const char*(const char*)>;

int number(const Environment& environment, const char* name, int min) {
  const char* text = environment(name);
  if (text == nullptr) fail(Exit::peer, "launch", "the launcher set no ", name);
  const std::string_view v = text;
  int value = 0;
  const auto parsed = std::from_chars(v.data(), v.data() + v.size(), value);
  if (parsed.ec != std::errc{} || parsed.ptr != v.data() + v.size() || value < min)
    fail(Exit::peer, "launch", "the environment variable ", name, "=\"", v, "\" is no number >= ", min);
  return value;
}

Launch read(const Environment& environment, Launcher launcher, const char* size, const char* rank) {
  Launch launch{launcher, number(environment, rank, 0), number(environment, size, 1)};
  if (launch.rank >= launch.size)
    fail(Exit::peer, "launch", rank, "=", launch.rank, " does not fit ", size, "=", launch.size);
  return launch;
}

Launch launcher_of(const Environment& environment) {
  const char* slurm = environment("SLURM_STEP_NUM_TASKS");
  const char* pmi = environment("PMI_SIZE");
  if (environment("OMPI_COMM_WORLD_SIZE"))
    return read(environment, Launcher::mpirun, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK");
  // srun sets PMI_SIZE too, to the number of its tasks; MPICH's mpirun inside a Slurm job sets another than the step it
  // runs in.
  if (pmi && !(slurm && std::string_view(pmi) == slurm))
    return read(environment, Launcher::mpirun, "PMI_SIZE", "PMI_RANK");
  if (slurm) return read(environment, Launcher::srun, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID");
  return {};
}

}  // namespace

Launch detect_launch(const Environment& environment) {
  const char* init = environment("SIEVE_NCCL_INIT");
  if (init == nullptr) return launcher_of(environment);
  constexpr std::string_view kFile = "file:";
  const std::string_view where = init;
  if (where.substr(0, kFile.size()) != kFile || where.size() == kFile.size())
    fail(Exit::peer, "launch", "SIEVE_NCCL_INIT=\"", where, "\" is no file:<folder>");
  Launch launch = environment("SIEVE_RANK") ? read(environment, Launcher::none, "SIEVE_WORLD_SIZE", "SIEVE_RANK")
                                            : launcher_of(environment);
  launch.meeting_folder = where.substr(kFile.size());
  // Ranks that were numbered by hand may each be a start of their own.
  for (const char* name : {"PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID"}) {
    const char* part = environment("SIEVE_RANK") ? nullptr : environment(name);
    if (part != nullptr) launch.job += cat(launch.job.empty() ? "" : ".", part);
  }
  for (const char* name : {"SIEVE_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"}) {
    if (environment(name) == nullptr) continue;
    launch.local_rank = number(environment, name, 0);
    break;
  }
  return launch;
}

Launch detect_launch() {
  return detect_launch([](const char* name) -> const char* { return std::getenv(name); });
}

}  // namespace sieve
