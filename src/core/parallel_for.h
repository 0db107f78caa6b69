// parallel_for(n, grain, f): f(begin, end) over disjoint pieces of [0, n), on all threads given. How [0, n) is cut
// depends on the number of threads, so f must compute every index on its own: no sums across indices. Reductions use
// fixed blocks (one index per block, combined in block order), which makes every result independent of the number of
// threads. OpenMP when built with it, the project's own thread pool otherwise (ThreadSanitizer understands that one).
// Exceptions thrown by f are rethrown in the caller, the first one by thread order. Nested calls run in the calling
// thread.
#pragma once

#include <cstdint>
#include <functional>

namespace sieve {

// Cores that this process may run on (its affinity mask), at least 1.
int available_cores();

int num_threads();
void set_num_threads(int n);  // n >= 1; also bounds the libraries' threads
bool in_parallel_region();

void parallel_for(std::int64_t n, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& f);

}  // namespace sieve
