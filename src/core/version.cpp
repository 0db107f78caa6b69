#include "core/version.h"

#include "core/git_revision.h"

namespace sieve {
const char* git_revision() { return kGitRevision; }
const char* library_versions() { return kLibraryVersions; }
}  // namespace sieve
