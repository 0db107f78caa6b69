// A product and its epilogue as two plain kernels. M, N, K extents; neighbouring threads own neighbouring columns.
#include <cmath>

#include "tensor/kernels/cuda/matmul_steps.h"
#include "tensor/kernels/cuda/pack.cuh"

namespace sieve::cuda {
namespace {

constexpr int kTile = 16;
constexpr std::int64_t kMaxGridY = 65535;

template <class T>
struct Matrix {  // element (i, j) at i rows + j columns
  const T* data;
  std::int64_t rows, columns;
  __device__ compute_t<T> at(std::int64_t i, std::int64_t j) const { return to_compute(data[i * rows + j * columns]); }
};

template <class T>
__global__ void __launch_bounds__(kTile* kTile)
    tiled_kernel(Matrix<T> a, Matrix<T> b, compute_t<T>* c, std::int64_t M, std::int64_t N, std::int64_t K,
                 std::int64_t ldc, compute_t<T> alpha, compute_t<T> beta) {
  using C = compute_t<T>;
  __shared__ C a_tile[kTile][kTile + 1], b_tile[kTile][kTile + 1];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kTile + tx;
  for (std::int64_t m0 = static_cast<std::int64_t>(blockIdx.y) * kTile; m0 < M;
       m0 += static_cast<std::int64_t>(gridDim.y) * kTile) {
    const std::int64_t m = m0 + ty;
    C sum = 0;
    for (std::int64_t k0 = 0; k0 < K; k0 += kTile) {
      a_tile[ty][tx] = m < M && k0 + tx < K ? a.at(m, k0 + tx) : C(0);
      b_tile[ty][tx] = n < N && k0 + ty < K ? b.at(k0 + ty, n) : C(0);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kTile; ++k) sum += a_tile[ty][k] * b_tile[k][tx];
      __syncthreads();  // before the next tile overwrites what others still read
    }
    if (m < M && n < N) {
      C* to = c + m * ldc + n;
      *to = alpha * sum + (beta == C(0) ? C(0) : beta * *to);
    }
  }
}

template <class T>
void launch_tiled(const MatmulArgs& a, const Stream& stream) {
  using C = compute_t<T>;
  const Matrix<T> left{static_cast<const T*>(a.a), a.transpose_a ? 1 : a.lda, a.transpose_a ? a.lda : 1};
  const Matrix<T> right{static_cast<const T*>(a.b), a.transpose_b ? 1 : a.ldb, a.transpose_b ? a.ldb : 1};
  const dim3 grid(static_cast<unsigned>((a.N + kTile - 1) / kTile),
                  static_cast<unsigned>(std::min((a.M + kTile - 1) / kTile, kMaxGridY)));
  tiled_kernel<T><<<grid, dim3(kTile, kTile), 0, handle_of(stream)>>>(
      left, right, static_cast<C*>(a.c), a.M, a.N, a.K, a.ldc, static_cast<C>(a.alpha), static_cast<C>(a.beta));
  check_launch("matmul");
}

// 0.5 (1 + tanh u) = sigmoid(2u), as in the CPU's twin: no cancellation for negative x.
template <class C>
__device__ C tanh_gate(C x) {
  return C(1) / (C(1) + exp(C(-1.5957691216057308) * (x + C(0.044715) * x * x * x)));
}
template <class C>
__device__ C gelu_slope(C x) {
  const C s = tanh_gate(x);
  return s + x * s * (C(1) - s) * C(1.5957691216057308) * (C(1) + C(3 * 0.044715) * x * x);
}

template <class T, class D>
struct Finish {
  const compute_t<D>* acc;
  const T* bias;
  const D* add;
  D* pre;
  D* c;
  std::int64_t M, N, acc_ld, ldc;
  compute_t<D> beta;
  Epilogue epilogue;
};

template <class T, class D>
__global__ void __launch_bounds__(kThreads) finish_kernel(Finish<T, D> f) {
  using C = compute_t<D>;
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= f.N) return;
  for (std::int64_t m = blockIdx.y; m < f.M; m += gridDim.y) {
    const std::int64_t at = m * f.ldc + n;
    C v = f.acc == nullptr ? C(0) : f.acc[m * f.acc_ld + n];
    if (f.beta != C(0)) v += f.beta * to_compute(f.c[at]);
    if (f.bias != nullptr) v += static_cast<C>(to_compute(f.bias[n]));
    if (f.add != nullptr) v += to_compute(f.add[at]);
    if (f.epilogue == Epilogue::gelu) {
      if (f.pre != nullptr) f.pre[at] = to_element<D>(v);
      v *= tanh_gate(v);
    } else if (f.epilogue == Epilogue::gelu_backward) {
      v *= gelu_slope(to_compute(f.pre[at]));
    }
    f.c[at] = to_element<D>(v);
  }
}

template <class T, class D>
void launch_finish(const MatmulArgs& a, const void* acc, std::int64_t acc_ld, const Stream& stream) {
  using C = compute_t<D>;
  const Finish<T, D> f{static_cast<const C*>(acc),
                       static_cast<const T*>(a.bias_N),
                       static_cast<const D*>(a.add_MN),
                       static_cast<D*>(a.pre_MN),
                       static_cast<D*>(a.c),
                       a.M,
                       a.N,
                       acc_ld,
                       a.ldc,
                       static_cast<C>(a.beta),
                       a.epilogue};
  const dim3 grid(static_cast<unsigned>((a.N + kThreads - 1) / kThreads),
                  static_cast<unsigned>(std::min(a.M, kMaxGridY)));
  finish_kernel<T, D><<<grid, kThreads, 0, handle_of(stream)>>>(f);
  check_launch("matmul epilogue");
}

}  // namespace

void tiled_product(const MatmulArgs& args, const Stream& stream) {
  switch (args.dtype) {
    case DType::f32: return launch_tiled<float>(args, stream);
    case DType::bf16: return launch_tiled<bf16>(args, stream);
    default: return launch_tiled<double>(args, stream);
  }
}

void finish_product(const MatmulArgs& args, const void* acc, std::int64_t acc_ld, const Stream& stream) {
  if (args.dtype == DType::f64) return launch_finish<double, double>(args, acc, acc_ld, stream);
  if (args.dtype == DType::f32) return launch_finish<float, float>(args, acc, acc_ld, stream);
  if (args.c_dtype == DType::f32) return launch_finish<bf16, float>(args, acc, acc_ld, stream);
  launch_finish<bf16, bf16>(args, acc, acc_ld, stream);
}

}  // namespace sieve::cuda
