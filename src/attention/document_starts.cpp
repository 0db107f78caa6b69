#include "attention/document_starts.h"

#include "core/error.h"
#include "tensor/same_device.h"

namespace sieve {

Tensor checked_starts(const Tensor& document_starts, std::int64_t B, std::int64_t T, const Device& device,
                      std::string_view op) {
  if (!document_starts.defined()) return {};
  require(document_starts.shape() == Shape{B, T} && document_starts.dtype() == DType::i32, op,
          "wants document_starts i32 ", Shape{B, T}, ", got ", name_of(document_starts.dtype()), " ",
          document_starts.shape());
  require_on(device, op, {{"document_starts", document_starts}});
  const Tensor starts = document_starts.contiguous();
  if (starts.device().is_cuda()) return starts;
  const std::int32_t* d = starts.data<std::int32_t>();
  for (std::int64_t x = 0; x < B * T; ++x) {
    const std::int64_t t = x % T, row = x - t;
    const bool is_start = d[x] == t, goes_on = t > 0 && d[x] == d[x - 1];
    require(is_start || goes_on, op, "document_starts[", row / T, ", ", t, "] = ", d[x],
            " is neither this position nor the start of the document before it");
  }
  return starts;
}

}  // namespace sieve
