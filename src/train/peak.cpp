#include "train/peak.h"

#include <algorithm>
#include <chrono>

#include "tensor/kernels/kernels.h"
#include "tensor/tensor.h"

namespace sieve {

double measure_peak_tflops(DType compute) {
  constexpr std::int64_t n = 1024;
  const Tensor a = full({n, n}, 0.5, compute), b = full({n, n}, 0.25, compute), c = empty({n, n}, compute);
  using Clock = std::chrono::steady_clock;
  constexpr double kBudget = 0.1;  // seconds: long enough that a moment of another process's work does not set the peak
  const auto begin = Clock::now();
  const auto since = [](Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); };
  double best = 1e300;
  for (int repeat = 0; repeat < 4 || since(begin) < kBudget; ++repeat) {  // the first one also pays for the start
    const auto start = Clock::now();
    launch(a.stream(), MatmulArgs{.a = a.raw(),
                                  .b = b.raw(),
                                  .c = c.raw(),
                                  .M = n,
                                  .N = n,
                                  .K = n,
                                  .lda = n,
                                  .ldb = n,
                                  .ldc = n,
                                  .dtype = compute,
                                  .c_dtype = compute});
    best = std::min(best, since(start));
  }
  return 2.0 * static_cast<double>(n * n * n) / best / 1e12;
}

}  // namespace sieve
