// Collectives by MPI on CPU memory. Includes no MPI header: whoever picks a communicator needs only the factory.
#pragma once

#include <memory>

#include "dist/communicator.h"
#include "dist/launch.h"
#include "dist/mpi_session.h"

namespace sieve {

// Throws Error(Exit::peer) where MPI does not start or finds another world than the launcher announced.
std::unique_ptr<Communicator> make_mpi_communicator(const Launch& launch, const MpiOptions& options = {});

}  // namespace sieve
