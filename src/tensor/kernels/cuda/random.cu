// Counter-based random numbers: the same counters and the same arithmetic in fp64 as on the CPU (core/rng.h).
#include "core/rng.h"
#include "tensor/kernels/cuda/pack.cuh"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    random(T* dst, std::int64_t n, Random kind, double a, double b, Philox philox) {
  SIEVE_GRID_STRIDE(i, n) {
    const auto counter = static_cast<std::uint64_t>(i);
    const double value =
        kind == Random::normal ? a + b * philox.normal(counter) : a + (b - a) * philox.uniform(counter);
    dst[i] = to_element<T>(static_cast<compute_t<T>>(value));
  }
}

}  // namespace

void run(const RandomArgs& args, Stream stream) {
  if (args.n == 0) return;
  dispatch_float(args.dtype, "random", [&]<class T>() {
    random<T><<<blocks_for(args.n), kThreads, 0, handle_of(stream)>>>(
        static_cast<T*>(args.dst), args.n, args.kind, args.a, args.b, Philox{args.seed, args.philox_stream});
  });
  check_launch("random");
}

}  // namespace sieve::cuda
