// Cross entropy of rows of logits and its gradient, which may overwrite them: one block a row. R rows, V vocabulary.
// The row is read from memory once where it fits into shared memory (a vocabulary of 50,304 in bf16 takes 98 KiB, two
// blocks to an SM), else twice, and written once. Statistics in the compute type.
#include <cmath>

#include "tensor/kernels/cuda/pack.cuh"
#include "tensor/kernels/kernels.h"

namespace sieve::cuda {
namespace {

template <class T, class G>
struct Rows {
  const T* logits_RV;
  const std::int32_t* targets_R;
  compute_t<T>* losses_R;
  G* dlogits_RV;
  std::int64_t V, ld;
  compute_t<T> scale;
  const compute_t<T>* factor;  // beside the logits, may be null
  bool wide;                   // rows may be accessed in packs
};

constexpr int kMaxThreads = 512;  // two blocks to an SM leave each thread 64 registers
template <class T>
constexpr int kInFlight = sizeof(T) == 8 ? 1 : 4;  // packs a thread asks for before it computes

// Logits in bf16 are no better than the hardware's exponential (2^-22).
template <class T>
__device__ compute_t<T> exponential(compute_t<T> x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __expf(x);
  } else {
    return exp(x);
  }
}

// exp(x - max) summed up to here. Starts from nothing; an empty one has no weight.
template <class C>
struct Running {
  C max = -INFINITY, sum = 0;

  // max never becomes -infinity - -infinity: rows may hold -infinity (masked logits) beside finite values.
  template <class T, int N>
  __device__ void add(const Pack<T, N>& pack) {
    C top = to_compute(pack.at[0]);
#pragma unroll
    for (int k = 1; k < N; ++k) top = to_compute(pack.at[k]) > top ? to_compute(pack.at[k]) : top;
    if (top > max) {
      sum *= exp(max - top);
      max = top;
    }
    const C base = max == C(-INFINITY) ? C(0) : max;
#pragma unroll
    for (int k = 0; k < N; ++k) sum += exponential<T>(to_compute(pack.at[k]) - base);
  }
};

// Packs of a row, several in flight, and the rest behind them element by element. Thread t takes packs t, t + threads,
// ... and always the same ones.
template <int N, class T, class Each, class Rest>
__device__ void over_row(const T* from, std::int64_t V, bool wide, Each each, Rest rest) {
  const std::int64_t packs = wide ? V / N : 0;
  for (std::int64_t first = threadIdx.x; first < packs; first += kInFlight<T> * blockDim.x) {
    Pack<T, N> pack[kInFlight<T>];
#pragma unroll
    for (int u = 0; u < kInFlight<T>; ++u) {
      const std::int64_t i = first + u * blockDim.x;
      if (i < packs) pack[u] = load_pack<N>(from + i * N);
    }
#pragma unroll
    for (int u = 0; u < kInFlight<T>; ++u) {
      const std::int64_t i = first + u * blockDim.x;
      if (i < packs) each(i * N, pack[u]);
    }
  }
  for (std::int64_t i = packs * N + threadIdx.x; i < V; i += blockDim.x) rest(i);
}

template <class T, class G, bool kept>
__global__ void __launch_bounds__(kMaxThreads, 2) cross_entropy_kernel(Rows<T, G> a) {
  using C = compute_t<T>;
  constexpr int N = kPack<T>;
  extern __shared__ uint4 shared[];
  T* row = reinterpret_cast<T*>(shared);
  const std::int64_t r = blockIdx.x;
  const T* x = a.logits_RV + r * a.ld;
  G* dx = a.dlogits_RV == nullptr ? nullptr : a.dlogits_RV + r * a.ld;
  const std::int32_t target = a.targets_R[r];
  if (target < 0 || target >= a.V) {  // ignored; outside the vocabulary: shown as NaN
    const C value = target < 0 ? C(0) : C(NAN);
    if (a.losses_R != nullptr && threadIdx.x == 0) a.losses_R[r] = value;
    if (dx != nullptr) {
      for (std::int64_t i = threadIdx.x; i < a.V; i += blockDim.x)
        dx[i] = to_element<G>(static_cast<compute_t<G>>(value));
    }
    return;  // the whole block: target is the same for all threads
  }
  const C at_target = to_compute(x[target]);  // before anybody overwrites it: block_reduce below waits for all

  Running<C> mine;
  over_row<N>(
      x, a.V, a.wide,
      [&](std::int64_t i, const Pack<T, N>& pack) {
        if constexpr (kept) store_pack<N>(row + i, pack);
        mine.add(pack);
      },
      [&](std::int64_t i) {
        const Pack<T, 1> one{{x[i]}};
        if constexpr (kept) row[i] = one.at[0];
        mine.add(one);
      });
  const C top = block_reduce<C, true>(mine.max);
  // A thread without elements, or with -infinity only, has no weight; a row of nothing else gives NaN.
  const C weight = mine.max == C(-INFINITY) && top != C(-INFINITY) ? C(0) : exp(mine.max - top);
  const C sum = block_reduce<C>(mine.sum != C(0) || top == C(-INFINITY) ? mine.sum * weight : C(0));
  if (a.losses_R != nullptr && threadIdx.x == 0) a.losses_R[r] = log(sum) + (top - at_target);
  if (dx == nullptr) return;

  const C scale = a.factor == nullptr ? a.scale : a.scale * *a.factor;
  const C per = scale / sum;
  // p - 1 at the target from one rounding, not from the rounded p
  const auto slope = [&](T value, std::int64_t i) {
    const C p = per * exponential<T>(to_compute(value) - top);
    return to_element<G>(static_cast<compute_t<G>>(i == target ? p - scale : p));
  };
  const T* from = kept ? row : x;  // every thread reads what it wrote, or what it alone overwrites
  over_row<N>(
      from, a.V, a.wide,
      [&](std::int64_t i, const Pack<T, N>& pack) {
        Pack<G, N> out;
#pragma unroll
        for (int k = 0; k < N; ++k) out.at[k] = slope(pack.at[k], i + k);
        store_pack<N>(dx + i, out);
      },
      [&](std::int64_t i) { dx[i] = slope(from[i], i); });
}

int shared_limit() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return bytes - 1024;  // what block_reduce and the system take
}

template <class T, class G>
void cross_entropy(const CrossEntropyArgs& a, const Stream& stream) {
  using C = compute_t<T>;
  constexpr int N = kPack<T>;
  Rows<T, G> rows{static_cast<const T*>(a.logits_RV),
                  a.targets_R,
                  static_cast<C*>(a.losses_R),
                  static_cast<G*>(a.dlogits_RV),
                  a.V,
                  a.ld,
                  static_cast<C>(a.grad_scale),
                  static_cast<const C*>(a.grad_factor),
                  false};
  rows.wide =
      a.ld % N == 0 && aligned<N>(rows.logits_RV) && (rows.dlogits_RV == nullptr || aligned<N>(rows.dlogits_RV));
  const unsigned threads = a.V > 2048 ? kMaxThreads : 128;
  const auto grid = static_cast<unsigned>(a.R);
  const std::int64_t bytes = (a.V + N) / N * 16;
  // Worth it only where the row is needed twice. fp64 is for oracles: it reads twice.
  if constexpr (!std::is_same_v<T, double> && !std::is_same_v<G, double>) {
    if (a.dlogits_RV != nullptr && bytes <= shared_limit()) {
      const auto kernel = cross_entropy_kernel<T, G, true>;
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
            "cudaFuncSetAttribute");
      kernel<<<grid, threads, static_cast<std::size_t>(bytes), handle_of(stream)>>>(rows);
      return check_launch("cross entropy");
    }
  }
  cross_entropy_kernel<T, G, false><<<grid, threads, 0, handle_of(stream)>>>(rows);
  check_launch("cross entropy");
}

}  // namespace

void run(const CrossEntropyArgs& args, Stream stream) {
  require(args.V > 0 || args.R == 0, "cross entropy", "empty vocabulary");
  require(args.R <= INT32_MAX, "cross entropy", args.R, " rows in one call");
  require(args.dlogits_RV != args.logits_RV || args.dlogits_dtype == args.dtype, "cross entropy",
          "in place with dtypes ", name_of(args.dtype), " and ", name_of(args.dlogits_dtype));
  if (args.R == 0) return;
  dispatch_float(args.dtype, "cross entropy", [&]<class T>() {
    dispatch_float(args.dlogits_RV == nullptr ? args.dtype : args.dlogits_dtype, "cross entropy",
                   [&]<class G>() { cross_entropy<T, G>(args, stream); });
  });
}

}  // namespace sieve::cuda
