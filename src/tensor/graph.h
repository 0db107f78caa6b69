// Work of a GPU's stream recorded once and queued again as a whole: what a launch costs the host is paid once. Memory
// and arguments are those of the recording; only what the memory holds may change.
#pragma once

#include <functional>

#include "tensor/device.h"

namespace sieve {

// Whether what is queued on `stream` is recorded at the moment and does not run. Never on a CPU.
bool recording(const Stream& stream);

class StreamGraph {
 public:
  StreamGraph() = default;
  ~StreamGraph();
  StreamGraph(StreamGraph&& other) noexcept;
  StreamGraph& operator=(StreamGraph&& other) noexcept;

  // Records what `work` queues on `stream`, which does not run. `work` may neither wait for the GPU nor use other
  // streams; libraries and kernels must have run once before (they load and allocate at their first call).
  void record(const Stream& stream, const std::function<void()>& work);
  bool recorded() const { return handle_ != nullptr; }
  void launch(const Stream& stream) const;  // queues it once more

 private:
  void* handle_ = nullptr;
};

}  // namespace sieve
