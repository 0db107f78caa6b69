// What tensor/graph.cpp needs from CUDA. No CUDA header in sight: handles are void*.
#pragma once

#include <functional>

#include "tensor/device.h"

namespace sieve::cuda {

bool recording(const Stream& stream);
void* record_graph(const Stream& stream, const std::function<void()>& work);
void launch_graph(void* graph, const Stream& stream);
void destroy_graph(void* graph);

}  // namespace sieve::cuda
