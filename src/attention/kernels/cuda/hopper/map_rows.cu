// What the host side of a launch needs. Tensor maps are encoded by the driver, found at run time so that no program
// needs it to start.
#include <cuda_runtime.h>

#include "attention/kernels/cuda/hopper/hopper.h"

namespace sieve::cuda::hopper {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode find_encoder() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
        "attention: tensor maps");
  if (found != cudaDriverEntryPointSuccess || entry == nullptr)
    fail(Exit::config, "attention", "the NVIDIA driver has no cuTensorMapEncodeTiled: it is older than CUDA 12");
  return reinterpret_cast<Encode>(entry);
}

}  // namespace

std::int64_t persistent_blocks(std::int64_t items) {
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), "attention");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "attention");
  return items < processors ? items : processors;
}

CUtensorMap map_rows(const Rows& rows, std::int64_t B, std::int64_t T, std::int64_t heads, std::int64_t D,
                     std::int64_t positions) {
  static const Encode encode = find_encoder();
  constexpr std::uint64_t kElement = sizeof(bf16);
  auto* base = const_cast<bf16*>(static_cast<const bf16*>(rows.base)) + rows.offset;
  const auto stride = static_cast<std::uint64_t>(rows.stride) * kElement;
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(D), static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(T),
                               static_cast<cuuint64_t>(B)};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(D) * kElement, stride, stride * static_cast<cuuint64_t>(T)};
  const cuuint32_t box[4] = {64, 1, static_cast<cuuint32_t>(positions), 1}, steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, base, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(result == CUDA_SUCCESS, "attention", "no tensor map over (", B, ", ", T, ", ", heads, ", ", D, ") with rows ",
          rows.stride, " elements apart: driver error ", static_cast<int>(result));
  return map;
}

}  // namespace sieve::cuda::hopper
