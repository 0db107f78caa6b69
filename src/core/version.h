// The commit this program was built from.
#pragma once

namespace sieve {
const char* git_revision();  // "1a2b3c4d5e6f", "...-dirty" or "unknown"
}
