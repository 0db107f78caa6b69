#include "train/peak.h"

#include <algorithm>
#include <chrono>

#include "tensor/kernels/kernels.h"
#include "tensor/runtime.h"
#include "tensor/tensor.h"

namespace sieve {
namespace {

// Not zeros: products of zeros draw less power and run faster than any training does.
Tensor operand(std::int64_t n, std::uint64_t number, DType dtype, const Stream& stream) {
  const Tensor t = empty({n, n}, dtype, stream);
  launch(stream, RandomArgs{.dst = t.raw(),
                            .n = t.numel(),
                            .kind = Random::uniform,
                            .a = -1,
                            .b = 1,
                            .seed = 1,
                            .philox_stream = number,
                            .dtype = dtype});
  return t;
}

}  // namespace

double measure_peak_tflops(DType compute, const Stream& stream) {
  const std::int64_t n = stream.device.is_cuda() ? 8192 : 1024;
  const Tensor a = operand(n, 1, compute, stream), b = operand(n, 2, compute, stream);
  const Tensor c = empty({n, n}, compute, stream);
  using Clock = std::chrono::steady_clock;
  constexpr double kBudget = 0.1;  // seconds: long enough that a moment of another process's work does not set the peak
  const auto begin = Clock::now();
  const auto since = [](Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); };
  double best = 1e300;
  for (int repeat = 0; repeat < 4 || since(begin) < kBudget; ++repeat) {  // the first one also pays for the start
    Event start(stream.device), stop(stream.device);
    start.record(stream);
    launch(stream, MatmulArgs{.a = a.raw(),
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
    stop.record(stream);
    stop.synchronize();
    best = std::min(best, stop.seconds_since(start));
  }
  const auto size = static_cast<double>(n);
  return 2 * size * size * size / best / 1e12;
}

}  // namespace sieve
