#include "tensor/cuda/graph.h"

#include <cuda_runtime.h>

#include "tensor/cuda/check.h"

namespace sieve::cuda {

bool recording(const Stream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(handle_of(stream), &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

void* record_graph(const Stream& stream, const std::function<void()>& work) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(handle_of(stream), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  try {
    work();
  } catch (...) {  // the stream must not stay a recording one
    static_cast<void>(cudaStreamEndCapture(handle_of(stream), &graph));
    static_cast<void>(cudaGetLastError());
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(handle_of(stream), &graph), "cudaStreamEndCapture");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(made, "cudaGraphInstantiate");
  return executable;
}

void launch_graph(void* graph, const Stream& stream) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), handle_of(stream)), "cudaGraphLaunch");
}

void destroy_graph(void* graph) {
  // Called by destructors: after a fault of the device nothing can be given back, and the fault is reported elsewhere.
  static_cast<void>(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}

}  // namespace sieve::cuda
