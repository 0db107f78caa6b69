// The commit this program was built from.
#pragma once

namespace sieve {
const char* git_revision();      // "1a2b3c4d5e6f", "...-dirty" or "unknown"
const char* library_versions();  // what it was built with: "HDF5 1.10.8, yaml-cpp 0.7.0, ..."
}  // namespace sieve
