// Letters: B batch, T time, H query heads, Hkv key-value heads, D head size, F features of qkv.
#include "attention/dense.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <future>
#include <iterator>
#include <map>
#include <mutex>
#include <typeinfo>

#include "attention/kernels/dense.h"
#include "attention/rotary.h"
#include "attention/warpgroup_engine.h"
#include "core/build.h"
#include "core/log.h"
#include "tensor/cuda/determinism.h"

namespace sieve {
namespace {

std::atomic<bool> allowed{true};

// Which shapes the library serves faster than the softmax engine: a layer takes it if some row holds. Edit this table
// where measurements (sieve bench attention) say otherwise. T = 1 has no backward there.
struct Served {
  AttentionKind kind;
  std::int64_t largest_head;  // D
  std::int64_t shortest;      // T
};
constexpr Served kServed[] = {
    {AttentionKind::full, 256, 2},
    {AttentionKind::sliding_window, 256, 2},
};

bool served(const AttentionSpec& spec, std::int64_t T) {
  return std::any_of(std::begin(kServed), std::end(kServed), [&](const Served& s) {
    return s.kind == spec.kind && spec.head_dim <= s.largest_head && T >= s.shortest;
  });
}

// The deterministic backward may keep a (T, T) matrix a head. Up to 2 GiB, or four times qkv, that is a fair price.
bool affordable(std::size_t workspace, const Tensor& qkv) {
  return workspace <= std::max(std::size_t{2} << 30, 4 * qkv.nbytes());
}

DenseAttentionArgs args_of(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv,
                           const RotaryTable& rotary) {
  DenseAttentionArgs args;
  args.qkv_BTF = qkv.raw();
  args.B = qkv.size(0);
  args.T = qkv.size(1);
  args.H = spec.n_heads;
  args.Hkv = spec.n_kv_heads;
  args.D = spec.head_dim;
  args.window = spec.kind == AttentionKind::sliding_window && spec.window < args.T ? spec.window : 0;
  args.scale = 1 / std::sqrt(static_cast<double>(spec.head_dim));
  args.dtype = qkv.dtype();
  if (rotary.cos.defined()) args.rotary = {rotary.cos.raw(), rotary.sin.raw(), rope.rotary_dims, -1};
  return args;
}

RotaryTable table_of(const RopeSpec& rope, const Tensor& qkv) {
  return rotary_table(rope, qkv.size(1), DType::f32, qkv.stream());
}

// A slice may begin anywhere; the kernels load 16 bytes at a time.
Tensor aligned(const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.raw()) % 16 == 0 ? t : t.clone(); }

struct Answer {
  bool yes = false, lasting = true;
};

// Makes forward's and backward's plans, side by side, so that no surprise is left for backward.
Answer prepare(DenseAttentionBackwardArgs args, bool saves, const Tensor& qkv) {
  if constexpr (build::with_cudnn) {
    float kept = 0;  // only whether statistics are kept is looked at
    if (saves) args.forward.statistics_BHT = &kept;
    try {
      std::future<std::size_t> backward;
      if (saves) backward = std::async(std::launch::async, [&] { return cuda::workspace_bytes(args, qkv.stream()); });
      std::size_t workspace = cuda::workspace_bytes(args.forward, qkv.stream());
      if (saves) workspace = std::max(workspace, backward.get());
      if (affordable(workspace, qkv)) return {.yes = true};
      log_info("attention of T = ", args.forward.T, " by the softmax engine: the fused one would take ",
               workspace >> 20, " MiB of working memory");
    } catch (const DenseUnsupported& e) {
      log_info("attention of T = ", args.forward.T, " by the softmax engine", e.lasting() ? "" : " this time", ": ",
               e.what());
      return {.yes = false, .lasting = e.lasting()};
    }
  }
  return {};
}

// The answer for a shape, found out once; not kept where the next call may get another.
bool prepared(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv, bool saves) {
  DenseAttentionBackwardArgs args;
  args.forward = args_of(spec, rope, qkv, {});
  args.forward.rotary.rotary_dims = rope.rotary_dims;
  args.deterministic = cuda::deterministic();
  const DenseAttentionArgs& f = args.forward;
  const std::array<std::int64_t, 10> shape = {
      qkv.device().index, saves, args.deterministic, rope.rotary_dims > 0, f.B, f.T, f.H, f.Hkv, f.D, f.window};
  static std::mutex mutex;
  static auto& answers = *new std::map<std::array<std::int64_t, 10>, bool>;
  const std::lock_guard lock(mutex);
  const auto found = answers.find(shape);
  if (found != answers.end()) return found->second;
  const Answer answer = prepare(args, saves, qkv);
  if (answer.lasting) answers[shape] = answer.yes;
  return answer.yes;
}

}  // namespace

bool dense_path(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv, bool documents, bool saves) {
  if (!qkv.device().is_cuda() || spec.kind == AttentionKind::sparsek) return false;
  if (!build::with_cudnn || qkv.dtype() != DType::bf16 || documents) {
    static std::once_flag said;
    if (warpgroup_engine(spec, rope, qkv)) return false;  // serves all of them at much the same speed
    std::call_once(said, [&] {
      log_info("full and window attention by the plain engine, which is much slower than the fused one: ",
               !build::with_cudnn ? "this program was built without cuDNN"
               : documents        ? "a batch holds several documents a row (model.attention.document_mask)"
                                  : "the fused one wants device.precision=bf16");
    });
    return false;
  }
  if (spec.head_dim % 8 != 0 || rope.rotary_dims > spec.head_dim || qkv.numel() == 0) return false;
  if (spec.kind == AttentionKind::sliding_window && spec.sinks > 0) return false;
  // On Hopper our own engine has the faster backward of windows, and the same bits in every run.
  const bool own = spec.kind == AttentionKind::sliding_window && spec.head_dim == 64 && spec.window <= qkv.size(1) / 2;
  if (own && warpgroup_engine(spec, rope, qkv)) return false;
  return allowed.load(std::memory_order_relaxed) && served(spec, qkv.size(1)) && prepared(spec, rope, qkv, saves);
}

Tensor dense_forward(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv, Tensor* statistics) {
  const std::int64_t B = qkv.size(0), T = qkv.size(1);
  Tensor out = empty({B, T, spec.n_heads * spec.head_dim}, qkv.dtype(), qkv.stream());
  if (statistics != nullptr) *statistics = empty({B, spec.n_heads, T}, DType::f32, qkv.stream());
  if constexpr (build::with_cudnn) {
    const Tensor input = aligned(qkv);
    const RotaryTable rotary = table_of(rope, qkv);
    DenseAttentionArgs args = args_of(spec, rope, input, rotary);
    args.out_BTHD = out.raw();
    if (statistics != nullptr) args.statistics_BHT = statistics->data<float>();
    const KernelTimer timer(typeid(DenseAttentionArgs).name(), qkv.stream());
    cuda::run(args, qkv.stream());
  } else {
    fail(Exit::internal, "dense attention", "this build has no cuDNN: ask dense_path first");
  }
  return out;
}

Tensor dense_backward(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv, const Tensor& out,
                      const Tensor& statistics, const Tensor& dout) {
  Tensor dqkv = empty_like(qkv);
  if constexpr (build::with_cudnn) {
    const Tensor input = aligned(qkv), gradient = aligned(dout);
    const RotaryTable rotary = table_of(rope, qkv);
    DenseAttentionBackwardArgs args;
    args.forward = args_of(spec, rope, input, rotary);
    args.forward.out_BTHD = out.raw();
    args.forward.statistics_BHT = statistics.data<float>();
    args.dout_BTHD = gradient.raw();
    args.dqkv_BTF = dqkv.raw();
    args.deterministic = cuda::deterministic();
    const KernelTimer timer(typeid(DenseAttentionBackwardArgs).name(), qkv.stream());
    cuda::run(args, qkv.stream());
  } else {
    fail(Exit::internal, "dense attention", "this build has no cuDNN: ask dense_path first");
  }
  return dqkv;
}

void allow_dense_attention(bool value) { allowed.store(value, std::memory_order_relaxed); }

}  // namespace sieve
