// Letters: B batch, T time, H query heads, Hkv key-value heads, D head size.
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING  // functions of cuDNN are looked up at run time (cudnn_library.h)
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include "attention/kernels/cuda/cudnn_plans.h"

#include <cudnn_frontend.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "attention/kernels/cuda/build_once.h"
#include "attention/kernels/cuda/cudnn_library.h"
#include "attention/kernels/dense.h"
#include "tensor/cuda/check.h"

namespace sieve::cuda {
namespace {

namespace fe = cudnn_frontend;
using TensorPtr = std::shared_ptr<fe::graph::Tensor_attributes>;
enum Uid : std::int64_t { kQ = 1, kK, kV, kOut, kStatistics, kDout, kDq, kDk, kDv };

// (heads, T, D) of a row-major (B, T, features) array, as cuDNN names its axes: B, heads, T, D.
struct Layout {
  std::vector<std::int64_t> dim, stride;
};
Layout rows_of(const DensePlanKey& key, std::int64_t heads, std::int64_t features) {
  return {{key.B, heads, key.T, key.D}, {key.T * features, key.D, features, 1}};
}

struct Layouts {
  Layout q, k, v, out, statistics, dq, dk;
};
Layouts layouts_of(const DensePlanKey& key) {
  const std::int64_t F = (key.H + 2 * key.Hkv) * key.D;
  const std::int64_t qk = key.rotated ? (key.H + key.Hkv) * key.D : F;
  Layouts l;
  l.q = rows_of(key, key.H, qk);
  l.k = rows_of(key, key.Hkv, qk);
  l.v = rows_of(key, key.Hkv, F);
  l.out = rows_of(key, key.H, key.H * key.D);
  l.statistics = {{key.B, key.H, key.T, 1}, {key.H * key.T, key.T, 1, 1}};
  l.dq = rows_of(key, key.H, F);
  l.dk = rows_of(key, key.Hkv, F);
  return l;
}

TensorPtr input(fe::graph::Graph& graph, const char* name, Uid uid, const Layout& layout,
                fe::DataType_t type = fe::DataType_t::BFLOAT16) {
  return graph.tensor(fe::graph::Tensor_attributes()
                          .set_name(name)
                          .set_uid(uid)
                          .set_dim(layout.dim)
                          .set_stride(layout.stride)
                          .set_data_type(type));
}

void output(const TensorPtr& tensor, Uid uid, const Layout& layout, fe::DataType_t type = fe::DataType_t::BFLOAT16) {
  tensor->set_output(true).set_uid(uid).set_dim(layout.dim).set_stride(layout.stride).set_data_type(type);
}

// Causal with the diagonal from the top left. A left bound of W keeps the keys j with j + W > i: W keys, i included.
template <class Attributes>
void mask(Attributes& attributes, const DensePlanKey& key) {
  attributes.set_attn_scale(key.scale)
      .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
      .set_diagonal_band_right_bound(0);
  if (key.window > 0) attributes.set_diagonal_band_left_bound(static_cast<int>(key.window));
}

void describe_forward(fe::graph::Graph& graph, const DensePlanKey& key) {
  const Layouts l = layouts_of(key);
  fe::graph::SDPA_attributes attributes;
  attributes.set_name("attention").set_generate_stats(key.statistics);
  mask(attributes, key);
  auto [out, statistics] = graph.sdpa(input(graph, "q", kQ, l.q), input(graph, "k", kK, l.k),
                                      input(graph, "v", kV, l.v), std::move(attributes));
  output(out, kOut, l.out);
  if (key.statistics) output(statistics, kStatistics, l.statistics, fe::DataType_t::FLOAT);
}

void describe_backward(fe::graph::Graph& graph, const DensePlanKey& key) {
  const Layouts l = layouts_of(key);
  fe::graph::SDPA_backward_attributes attributes;
  attributes.set_name("attention_backward").set_deterministic_algorithm(key.deterministic);
  mask(attributes, key);
  auto [dq, dk, dv] = graph.sdpa_backward(
      input(graph, "q", kQ, l.q), input(graph, "k", kK, l.k), input(graph, "v", kV, l.v),
      input(graph, "out", kOut, l.out), input(graph, "dout", kDout, l.out),
      input(graph, "statistics", kStatistics, l.statistics, fe::DataType_t::FLOAT), std::move(attributes));
  output(dq, kDq, l.dq);
  output(dk, kDk, l.dk);
  output(dv, kDv, l.dk);
}

struct Plan {
  BuildOnce built;
  fe::graph::Graph graph;
  std::int64_t workspace = 0;
};

// The library's reasons run over many lines, one for every kernel that it tried.
std::string shortened(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.substr(0, 300);
}

// Does the library mean that it has no kernel for this graph? All other failures may be the moment's.
bool means_unsupported(const fe::error_t& status) {
  switch (status.code) {
    case fe::error_code_t::ATTRIBUTE_NOT_SET:
    case fe::error_code_t::SHAPE_DEDUCTION_FAILED:
    case fe::error_code_t::INVALID_TENSOR_NAME:
    case fe::error_code_t::INVALID_VALUE:
    case fe::error_code_t::GRAPH_NOT_SUPPORTED:
    case fe::error_code_t::UNSUPPORTED_GRAPH_FORMAT:
    case fe::error_code_t::HEURISTIC_QUERY_FAILED: return !speaks_of_memory(status.err_msg);
    default: return false;
  }
}

// Half a second of compilation, mostly, by the library's heuristic A and the first kernel of its list that it can
// build.
std::optional<Refusal> build(Plan& plan, const CudnnHandle& cudnn, const DensePlanKey& key) {
  if (cudnn.handle == nullptr) return Refusal{cudnn.missing, !cudnn.loaded};
  std::optional<Refusal> refusal;
  const auto succeeded = [&](fe::error_t status) {
    if (status.is_bad()) refusal = Refusal{"cuDNN: " + shortened(status.get_message()), means_unsupported(status)};
    return status.is_good();
  };
  plan.graph = {};  // an attempt that failed may have left a part of one
  try {
    plan.graph.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    if (key.backward) describe_backward(plan.graph, key);
    else describe_forward(plan.graph, key);
    if (succeeded(plan.graph.build(cudnn.handle, {fe::HeurMode_t::A})))
      succeeded(plan.graph.get_workspace_size(plan.workspace));
  } catch (const std::exception& e) {  // a function that this cuDNN or driver does not have
    refusal = Refusal{cat("cuDNN: ", e.what()), !speaks_of_memory(e.what())};
  }
  // A refusal may have left an error; it is handled.
  if (cudaGetLastError() == cudaErrorMemoryAllocation && refusal) refusal->lasting = false;
  return refusal;
}

// A handle serves one thread at a time: `execution` under the mutex, every build one of `idle` or a new one, so that
// several threads build at once.
struct DevicePlans {
  std::mutex mutex;
  std::map<DensePlanKey, Plan> plans;
  std::vector<CudnnHandle> idle;
  CudnnHandle execution;
};

DevicePlans& plans_of(Device device) {
  static std::mutex mutex;
  static auto& devices = *new std::map<int, DevicePlans>;  // never destroyed: CUDA may be gone before it
  const std::lock_guard lock(mutex);
  return devices[device.index];
}

std::optional<Refusal> build_with_own_handle(DevicePlans& device, Plan& plan, const DensePlanKey& key, Device where) {
  check(cudaSetDevice(where.index), "cudaSetDevice");
  CudnnHandle cudnn;
  {
    const std::lock_guard lock(device.mutex);
    if (!device.idle.empty()) {
      cudnn = device.idle.back();
      device.idle.pop_back();
    }
  }
  if (cudnn.handle == nullptr) cudnn = create_cudnn(where);
  std::optional<Refusal> refusal = build(plan, cudnn, key);
  if (cudnn.handle == nullptr) return refusal;
  const std::lock_guard lock(device.mutex);
  device.idle.push_back(cudnn);
  return refusal;
}

// Each plan holds memory of its own, on the host and on the device. Training needs a handful; whoever feeds ever new
// lengths is better served by an engine that does not compile for each.
constexpr std::size_t kMostPlans = 1024;

Plan& find_plan(DevicePlans& device, const DensePlanKey& key, Device where) {
  Plan* plan = nullptr;
  {
    const std::lock_guard lock(device.mutex);
    const auto found = device.plans.find(key);
    if (found == device.plans.end() && device.plans.size() >= kMostPlans)
      throw DenseUnsupported(cat("more than ", kMostPlans, " shapes"));
    plan = found != device.plans.end() ? &found->second : &device.plans[key];
  }
  const auto refusal = plan->built([&] { return build_with_own_handle(device, *plan, key, where); });
  if (refusal) throw DenseUnsupported(refusal->why, refusal->lasting);
  return *plan;
}

}  // namespace

std::size_t plan_workspace_bytes(const DensePlanKey& key, Stream stream) {
  return static_cast<std::size_t>(find_plan(plans_of(stream.device), key, stream.device).workspace);
}

void run_plan(const DensePlanKey& key, const DensePointers& p, void* workspace, Stream stream) {
  const auto plain = [](const void* pointer) { return const_cast<void*>(pointer); };  // cuDNN's maps know no const
  std::unordered_map<std::int64_t, void*> pointers = {
      {kQ, plain(p.q)}, {kK, plain(p.k)}, {kV, plain(p.v)}, {kOut, p.out}};
  if (key.statistics) pointers[kStatistics] = p.statistics;
  if (key.backward) {
    pointers[kDout] = plain(p.dout);
    pointers[kDq] = p.dq;
    pointers[kDk] = p.dk;
    pointers[kDv] = p.dv;
  }
  DevicePlans& device = plans_of(stream.device);
  Plan& plan = find_plan(device, key, stream.device);
  const std::lock_guard lock(device.mutex);
  if (device.execution.handle == nullptr) device.execution = create_cudnn(stream.device);
  require(device.execution.handle != nullptr, "cudnn", device.execution.missing);
  set_cudnn_stream(device.execution.handle, stream);
  fe::error_t status = plan.graph.execute(device.execution.handle, pointers, workspace);
  require(status.is_good(), "cudnn", "attention: ", status.get_message());
}

}  // namespace sieve::cuda
