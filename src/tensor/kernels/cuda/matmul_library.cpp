// cuBLASLt is column-major. A row-major C (M, N) is a column-major C^T (N, M), and C^T = op(B)^T op(A)^T: so the
// library's A is our B, its B is our A, its rows are our N, its columns our M. Our bias over N is its bias over rows,
// and our sums of A over K are the bias gradient of its operand B (BGRADB).
#include "tensor/kernels/cuda/matmul_library.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <compare>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tensor/cuda/check.h"
#include "tensor/kernels/cuda/matmul_tuning.h"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

constexpr std::size_t kWorkspace = std::size_t{32} << 20;  // what Hopper's algorithms ask for at most
constexpr int kProposals = 8;
constexpr double kWorthTiming = 1 << 30;  // M N K

std::atomic<bool> timed_choice{false}, fused_sums{false};

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(status == CUBLAS_STATUS_ALLOC_FAILED ? Exit::memory : Exit::internal, "cuBLASLt", what, ": ",
       cublasLtGetStatusString(status));
}

template <auto destroy>
struct Destroy {
  template <class T>
  void operator()(T* handle) const {
    static_cast<void>(destroy(handle));
  }
};
using Description = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>, Destroy<cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>, Destroy<cublasLtMatrixLayoutDestroy>>;
using Preference =
    std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>, Destroy<cublasLtMatmulPreferenceDestroy>>;

cudaDataType_t type_of(DType t) { return t == DType::f64 ? CUDA_R_64F : t == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

// Up to the 256 bytes that the library distinguishes.
int alignment_of(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p) | 256;
  return 1 << std::countr_zero(address);
}

// All that a plan depends on. Alignments: A, B, C (or what is added), D, bias or sums, pre.
struct Key {
  int device;
  std::int64_t M, N, K, lda, ldb, ldc;
  bool transpose_a, transpose_b, reads_c, timed;
  DType dtype, c_dtype;
  cublasLtEpilogue_t epilogue;
  std::array<int, 6> alignment;
  auto operator<=>(const Key&) const = default;
};

struct Plan {
  Description description;
  Layout a, b, c;  // of the library's A and B
  bool found = false;
  cublasLtMatmulAlgo_t algorithm{};
};

cublasLtEpilogue_t epilogue_of(const MatmulArgs& a) {
  const bool bias = a.bias_N != nullptr, keep = a.pre_MN != nullptr;
  if (a.epilogue == Epilogue::gelu_backward) return CUBLASLT_EPILOGUE_DGELU;
  if (a.epilogue == Epilogue::gelu) {
    if (keep) return bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
  }
  if (a.a_sum_M != nullptr) return CUBLASLT_EPILOGUE_BGRADB;
  return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

const void* matrix_c(const MatmulArgs& a) { return a.add_MN != nullptr ? a.add_MN : a.c; }
const void* vector_of(const MatmulArgs& a) { return a.bias_N != nullptr ? a.bias_N : a.a_sum_M; }

Key key_of(const MatmulArgs& a, Device device) {
  Key key{};
  key.device = device.index;
  key.M = a.M, key.N = a.N, key.K = a.K;
  key.lda = a.lda, key.ldb = a.ldb, key.ldc = a.ldc;
  key.transpose_a = a.transpose_a, key.transpose_b = a.transpose_b;
  key.reads_c = a.add_MN != nullptr || a.beta != 0;
  key.timed = timed_choice.load(std::memory_order_relaxed);
  key.dtype = a.dtype, key.c_dtype = a.c_dtype;
  key.epilogue = epilogue_of(a);
  key.alignment = {alignment_of(a.a), alignment_of(a.b),          alignment_of(matrix_c(a)),
                   alignment_of(a.c), alignment_of(vector_of(a)), alignment_of(a.pre_MN)};
  return key;
}

template <class T>
void set(const Plan& plan, cublasLtMatmulDescAttributes_t what, const T& value) {
  check(cublasLtMatmulDescSetAttribute(plan.description.get(), what, &value, sizeof(value)), "describe");
}

Layout layout(DType t, bool transposed, std::int64_t rows, std::int64_t columns, std::int64_t ld) {
  cublasLtMatrixLayout_t out = nullptr;
  check(cublasLtMatrixLayoutCreate(&out, type_of(t), static_cast<std::uint64_t>(transposed ? columns : rows),
                                   static_cast<std::uint64_t>(transposed ? rows : columns), ld),
        "layout");
  return Layout(out);
}

void describe(Plan& plan, const MatmulArgs& a) {
  const bool wide = a.dtype == DType::f64;
  cublasLtMatmulDesc_t description = nullptr;
  check(cublasLtMatmulDescCreate(&description, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                 wide ? CUDA_R_64F : CUDA_R_32F),
        "describe");
  plan.description.reset(description);
  set(plan, CUBLASLT_MATMUL_DESC_TRANSA, a.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan, CUBLASLT_MATMUL_DESC_TRANSB, a.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(a));
  plan.a = layout(a.dtype, a.transpose_b, a.N, a.K, a.ldb);
  plan.b = layout(a.dtype, a.transpose_a, a.K, a.M, a.lda);
  plan.c = layout(a.c_dtype, false, a.N, a.M, a.ldc);
  if (vector_of(a) != nullptr) set(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(a.c_dtype));
  if (a.pre_MN != nullptr) set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, a.ldc);
}

// The pointers that stand in the description; the heuristic looks at their alignment.
void set_pointers(const Plan& plan, const MatmulArgs& a) {
  if (vector_of(a) != nullptr) set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, vector_of(a));
  if (a.pre_MN != nullptr) set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, a.pre_MN);
}

std::vector<cublasLtMatmulHeuristicResult_t> proposals(cublasLtHandle_t handle, const Plan& plan, const Key& key) {
  cublasLtMatmulPreference_t raw = nullptr;
  check(cublasLtMatmulPreferenceCreate(&raw), "preference");
  const Preference preference(raw);
  const auto prefer = [raw](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(raw, what, &value, sizeof(value)), "preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  // K may be split only where the parts are added up in order and in the compute type: in place the order is that of
  // arrival, and in C's type every part would be rounded.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  const auto bytes = [&key](int i) { return static_cast<std::uint32_t>(key.alignment[static_cast<std::size_t>(i)]); };
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, bytes(1));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, bytes(0));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, bytes(2));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, bytes(3));
  std::vector<cublasLtMatmulHeuristicResult_t> out(key.timed ? kProposals : 1);
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, plan.description.get(), plan.a.get(), plan.b.get(), plan.c.get(),
                                     plan.c.get(), raw, static_cast<int>(out.size()), out.data(), &found);
  // Combinations it does not have are answered in several ways; none of them is an error here.
  out.resize(status == CUBLAS_STATUS_SUCCESS ? static_cast<std::size_t>(found) : 0);
  std::erase_if(out, [](const auto& r) { return r.state != CUBLAS_STATUS_SUCCESS || r.workspaceSize > kWorkspace; });
  return out;
}

// Handles and workspaces live as long as the process: at its end the driver may be gone before static objects are.
cublasLtHandle_t handle_for(Device device) {
  static auto& handles = *new std::map<int, cublasLtHandle_t>;
  cublasLtHandle_t& handle = handles[device.index];
  if (handle == nullptr) check(cublasLtCreate(&handle), "create");
  return handle;
}

void* workspace_for(const Stream& stream) {
  static auto& spaces = *new std::map<void*, std::unique_ptr<Scratch>>;
  auto& space = spaces[stream.handle];
  if (!space) space = std::make_unique<Scratch>(kWorkspace, stream);
  return space->as<void>();
}

cublasStatus_t enqueue(const Plan& plan, const cublasLtMatmulAlgo_t& algorithm, const MatmulArgs& a, void* d,
                       const Stream& stream) {
  const double alpha = a.alpha, beta = a.add_MN != nullptr ? 1 : a.beta;
  const auto alpha32 = static_cast<float>(alpha), beta32 = static_cast<float>(beta);
  const bool wide = a.dtype == DType::f64;
  return cublasLtMatmul(handle_for(stream.device), plan.description.get(),
                        wide ? static_cast<const void*>(&alpha) : &alpha32, a.b, plan.a.get(), a.a, plan.b.get(),
                        wide ? static_cast<const void*>(&beta) : &beta32, matrix_c(a), plan.c.get(), d, plan.c.get(),
                        &algorithm, workspace_for(stream), kWorkspace, handle_of(stream));
}

// Two runs of each proposal, the second one timed, into memory of its own: C may be an input.
cublasLtMatmulAlgo_t fastest(const std::vector<cublasLtMatmulHeuristicResult_t>& candidates, const Plan& plan,
                             const MatmulArgs& a, const Stream& stream) {
  const std::size_t elements =
      static_cast<std::size_t>(a.M - 1) * static_cast<std::size_t>(a.ldc) + static_cast<std::size_t>(a.N);
  const Scratch trial(elements * size_of(a.c_dtype), stream);
  cudaEvent_t begin = nullptr, end = nullptr;
  cuda::check(cudaEventCreate(&begin), "cudaEventCreate");
  cuda::check(cudaEventCreate(&end), "cudaEventCreate");
  float least = std::numeric_limits<float>::infinity();
  cublasLtMatmulAlgo_t best = candidates.front().algo;
  for (const auto& candidate : candidates) {
    if (enqueue(plan, candidate.algo, a, trial.as<void>(), stream) != CUBLAS_STATUS_SUCCESS) continue;
    cuda::check(cudaEventRecord(begin, handle_of(stream)), "cudaEventRecord");
    check(enqueue(plan, candidate.algo, a, trial.as<void>(), stream), "matmul");
    cuda::check(cudaEventRecord(end, handle_of(stream)), "cudaEventRecord");
    cuda::check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds = 0;
    cuda::check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    if (milliseconds < least) {
      least = milliseconds;
      best = candidate.algo;
    }
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best;
}

bool capturing(const Stream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cuda::check(cudaStreamIsCapturing(handle_of(stream), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

std::unique_ptr<Plan> make_plan(const Key& key, const MatmulArgs& a, const Stream& stream) {
  auto plan = std::make_unique<Plan>();
  describe(*plan, a);
  set_pointers(*plan, a);
  const auto candidates = proposals(handle_for(stream.device), *plan, key);
  plan->found = !candidates.empty();
  if (!plan->found) return plan;
  plan->algorithm = candidates.front().algo;
  const double work = static_cast<double>(a.M) * static_cast<double>(a.N) * static_cast<double>(a.K);
  if (candidates.size() > 1 && work > kWorthTiming && !capturing(stream))
    plan->algorithm = fastest(candidates, *plan, a, stream);
  return plan;
}

}  // namespace

void set_matmul_tuning(bool timed) { timed_choice.store(timed, std::memory_order_relaxed); }
void set_matmul_fused_sums(bool fused) { fused_sums.store(fused, std::memory_order_relaxed); }
bool matmul_fused_sums() { return fused_sums.load(std::memory_order_relaxed); }

bool library_product(const MatmulArgs& args, const Stream& stream) {
  // One lock for all: a description holds the pointers of the call that is being queued.
  static std::mutex mutex;
  static auto& plans = *new std::map<Key, std::unique_ptr<Plan>>;
  const std::lock_guard lock(mutex);
  if (plans.size() > 4096) plans.clear();  // ever new shapes (evaluation of ragged texts) must not grow without bound
  auto& plan = plans[key_of(args, stream.device)];
  if (!plan) plan = make_plan(key_of(args, stream.device), args, stream);
  if (!plan->found) return false;
  set_pointers(*plan, args);
  const cublasStatus_t status = enqueue(*plan, plan->algorithm, args, args.c, stream);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) {
    plan->found = false;  // proposed, and yet not taken
    return false;
  }
  check(status, "matmul");
  return true;
}

}  // namespace sieve::cuda
