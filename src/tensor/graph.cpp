#include "tensor/graph.h"

#include <utility>

#include "core/build.h"
#include "core/error.h"
#include "tensor/cuda/graph.h"

namespace sieve {

bool recording(const Stream& stream) {
  if constexpr (build::with_cuda) return stream.device.is_cuda() && cuda::recording(stream);
  return false;
}

StreamGraph::~StreamGraph() {
  if constexpr (build::with_cuda) {
    if (handle_ != nullptr) cuda::destroy_graph(handle_);
  }
}
StreamGraph::StreamGraph(StreamGraph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
StreamGraph& StreamGraph::operator=(StreamGraph&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

void StreamGraph::record(const Stream& stream, const std::function<void()>& work) {
  require(handle_ == nullptr && stream.device.is_cuda(), "graph", "recorded twice, or not on a GPU");
  if constexpr (build::with_cuda) handle_ = cuda::record_graph(stream, work);
}

void StreamGraph::launch(const Stream& stream) const {
  require(handle_ != nullptr, "graph", "nothing was recorded");
  if constexpr (build::with_cuda) cuda::launch_graph(handle_, stream);
}

}  // namespace sieve
