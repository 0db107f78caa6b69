// How this process was started, read from the environment before MPI is.
#pragma once

#include <functional>

namespace sieve {

enum class Launcher { none, mpirun, srun };

struct Launch {
  Launcher launcher = Launcher::none;
  int rank = 0;
  int size = 1;  // as the launcher says
};

// mpirun: OMPI_COMM_WORLD_{SIZE,RANK} (Open MPI) or PMI_{SIZE,RANK} (MPICH and its kin); srun: SLURM_STEP_NUM_TASKS and
// SLURM_PROCID, which a batch script itself does not see. Throws Error(Exit::peer) where the values are no numbers.
Launch detect_launch();
Launch detect_launch(const std::function<const char*(const char* name)>& environment);

}  // namespace sieve
