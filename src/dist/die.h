// The one way out on a fatal error.
#pragma once

#include <string_view>

#include "core/error.h"

namespace sieve {

// Logs the reason, a record for each of its lines, flushes, and leaves by _exit: no destructors, never MPI_Finalize (it
// would wait for ranks that are still working; leaving without it makes mpirun end them). Safe from any thread, not
// from a signal handler. Of several callers the first speaks. Ends within 5 s even where the log cannot be written.
[[noreturn]] void die(Exit code, std::string_view reason);

}  // namespace sieve
