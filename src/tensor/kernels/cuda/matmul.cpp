// Matrix products on the GPU: cuBLASLt does what it can fuse in one call; the rest follows in kernels of our own. Every
// size and alignment has a way.
#include "tensor/kernels/cuda/matmul_library.h"
#include "tensor/kernels/cuda/matmul_steps.h"
#include "tensor/kernels/cuda/matmul_tuning.h"
#include "tensor/kernels/cuda/scratch.h"
#include "tensor/kernels/matmul_check.h"

namespace sieve::cuda {
namespace {

bool aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// What cuBLASLt's epilogues can express. fp32 keeps its GELU out of the library, whose tanh is an approximation good
// for bf16 only, and so do fp64, which has no epilogues, and strides that the library's auxiliary matrix may not have.
bool library_can_fuse(const MatmulArgs& a) {
  if (a.bias_N != nullptr && (a.dtype == DType::f64 || a.dtype != a.c_dtype || !aligned16(a.bias_N))) return false;
  if (a.add_MN != nullptr && a.beta != 0) return false;  // both would be its matrix C
  if (a.epilogue == Epilogue::none) return true;
  if (a.dtype != DType::bf16 || a.c_dtype != DType::bf16) return false;
  if (a.epilogue == Epilogue::gelu_backward && a.bias_N != nullptr) return false;
  return a.pre_MN == nullptr || (aligned16(a.pre_MN) && a.ldc % 8 == 0);
}

// The sums leave the library in C's dtype through the pointer of the bias. Only products of bf16 into fp32 (dW) use it:
// fp32 sums of long columns are better in blocks.
bool library_can_sum(const MatmulArgs& a) {
  return matmul_fused_sums() && a.dtype == DType::bf16 && a.c_dtype == DType::f32 && a.bias_N == nullptr &&
         a.epilogue == Epilogue::none && aligned16(a.a_sum_M);
}

void sums_of_a(MatmulArgs& a, const Stream& stream) {
  if (a.transpose_a) {
    run(column_sums_of_a(a), stream);
  } else {
    run(row_sums_of_a(a), stream);
  }
  a.a_sum_M = nullptr;
}

MatmulArgs without_epilogue(MatmulArgs a) {
  a.bias_N = a.add_MN = nullptr;
  a.pre_MN = nullptr;
  a.epilogue = Epilogue::none;
  return a;
}

void plain_product(const MatmulArgs& a, const Stream& stream) {
  if (!library_product(a, stream)) tiled_product(a, stream);
}

// The product in the compute dtype, then the rest, rounded once.
void in_steps(const MatmulArgs& a, const Stream& stream) {
  if (a.K == 0) return finish_product(a, nullptr, 0, stream);
  MatmulArgs product = without_epilogue(a);
  if (a.c_dtype != DType::bf16) {  // C has the compute dtype itself
    plain_product(product, stream);
    if (a.bias_N == nullptr && a.add_MN == nullptr && a.epilogue == Epilogue::none) return;
    MatmulArgs rest = a;
    rest.beta = 0;
    return finish_product(rest, a.c, a.ldc, stream);
  }
  const Scratch sums(static_cast<std::size_t>(a.M) * static_cast<std::size_t>(a.N) * sizeof(float), stream);
  product.c = sums.as<float>();
  product.c_dtype = DType::f32;
  product.ldc = a.N;
  product.beta = 0;
  plain_product(product, stream);
  finish_product(a, sums.as<float>(), a.N, stream);
}

}  // namespace

void run(const MatmulArgs& given, Stream stream) {
  check_matmul(given);
  MatmulArgs args = normalised(given);
  if (args.M == 0) return;
  const bool something = args.N > 0 && args.K > 0;
  if (args.a_sum_M != nullptr && !(something && library_can_sum(args))) sums_of_a(args, stream);
  if (args.N == 0) return;
  if (something && library_can_fuse(args) && library_product(args, stream)) return;
  if (args.a_sum_M != nullptr) {
    sums_of_a(args, stream);
    if (library_can_fuse(args) && library_product(args, stream)) return;
  }
  in_steps(args, stream);
}

}  // namespace sieve::cuda
