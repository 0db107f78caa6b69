// manifest.json of a run: what was run, on what, from what.
#pragma once

#include <filesystem>

#include "dist/communicator.h"
#include "io/json.h"
#include "train/plan.h"
#include "train/run_data.h"

namespace sieve {

// Collective: the hosts of all ranks are gathered. `restored`: the checkpoint the run goes on from, or empty.
Json run_manifest(const RunConfig& config, const RunData& data, const RunPlan& plan,
                  const std::filesystem::path& restored, Communicator& comm);

}  // namespace sieve
