// How ranks without MPI find each other (SIEVE_NCCL_INIT=file:<folder>): rank 0 leaves a message in a folder that all
// of them see, the others read it.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "dist/launch.h"

namespace sieve {

// Rank 0's message, on every rank; `make_message` runs on rank 0 alone, once the folder was found fit. Waits for the
// file at most `timeout_seconds`. Error(Exit::peer) with the path and what to do: a folder that is missing, none, or
// not writable for rank 0; a file that an earlier run left, told by its age, its number of ranks or its job; no file in
// time.
std::string meet_in_folder(const Launch& launch, const std::filesystem::path& folder, double timeout_seconds,
                           const std::function<std::string()>& make_message);

// By rank 0, when all have read it: the folder may serve another run.
void clear_meeting(const std::filesystem::path& folder);

}  // namespace sieve
