// How this process was started, read from the environment before MPI is.
#pragma once

#include <functional>
#include <string>

namespace sieve {

enum class Launcher { none, mpirun, srun };

struct Launch {
  Launcher launcher = Launcher::none;
  int rank = 0;
  int size = 1;  // as the launcher says
  int local_rank = 0;
  std::string meeting_folder;  // without MPI: where the ranks meet
  std::string job;             // the launcher's name of this start, where it gives one
};

// mpirun: OMPI_COMM_WORLD_{SIZE,RANK} (Open MPI) or PMI_{SIZE,RANK} (MPICH and its kin); srun: SLURM_STEP_NUM_TASKS and
// SLURM_PROCID, which a batch script itself does not see. SIEVE_NCCL_INIT=file:<folder> (clusters whose launcher knows
// no PMI): the ranks meet in a folder that they share, a new one for every run; then SIEVE_RANK, SIEVE_WORLD_SIZE and
// SIEVE_LOCAL_RANK, or what the launcher says (local rank: OMPI_COMM_WORLD_LOCAL_RANK, SLURM_LOCALID). Throws
// Error(Exit::peer) where the values are no numbers.
Launch detect_launch();
Launch detect_launch(const std::function<const char*(const char* name)>& environment);

}  // namespace sieve
