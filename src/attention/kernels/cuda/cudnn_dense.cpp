// Dense attention by cuDNN. Rotary embedding comes first, into a copy of q and k that lives as long as the call:
// rotating again in backward moves 4 (H + Hkv) D bytes a token, a few percent of backward's time, while keeping the
// copy would cost every layer two thirds of its qkv. dq and dk are turned back where they lie in dqkv.
#include <algorithm>
#include <cstddef>

#include "attention/kernels/cuda/cudnn_plans.h"
#include "attention/kernels/cuda/dense_rotate.h"
#include "attention/kernels/dense.h"
#include "tensor/kernels/cuda/scratch.h"

namespace sieve::cuda {
namespace {

constexpr std::int64_t kBytes = 2;  // of a bf16

const void* at(const void* base, std::int64_t element) {
  return static_cast<const std::byte*>(base) + element * kBytes;
}
void* at(void* base, std::int64_t element) { return static_cast<std::byte*>(base) + element * kBytes; }

bool rotates(const DenseAttentionArgs& a) { return a.rotary.rotary_dims > 0; }

void check_args(const DenseAttentionArgs& a) {
  require(a.dtype == DType::bf16, "dense attention", "wants bf16, got ", name_of(a.dtype));
  require(a.B >= 1 && a.T >= 1 && a.Hkv >= 1 && a.H % a.Hkv == 0 && a.D >= 8 && a.D % 8 == 0, "dense attention", "B ",
          a.B, " T ", a.T, " H ", a.H, " Hkv ", a.Hkv, " D ", a.D, ": empty, or D no multiple of 8");
  require(a.T < (std::int64_t{1} << 31) && a.window >= 0, "dense attention", "T ", a.T, " window ", a.window);
  require(a.rotary.far_distance == -1 && a.rotary.rotary_dims % 2 == 0 && a.rotary.rotary_dims <= a.D,
          "dense attention", "rotary_dims ", a.rotary.rotary_dims, " far_distance ", a.rotary.far_distance);
}

DensePlanKey key_of(const DenseAttentionArgs& a) {
  check_args(a);
  DensePlanKey key;
  key.statistics = a.statistics_BHT != nullptr;
  key.rotated = rotates(a);
  key.B = a.B;
  key.T = a.T;
  key.H = a.H;
  key.Hkv = a.Hkv;
  key.D = a.D;
  key.window = a.window < a.T ? a.window : 0;
  key.scale = static_cast<float>(a.scale);
  return key;
}

// cuDNN's deterministic backward keeps a (T, T) matrix a head, so it goes over the batch in pieces of at most 1 GiB of
// them: as many rows as divide B, at least one. Pieces are equal, so one plan serves them.
std::int64_t rows_at_a_time(const DenseAttentionBackwardArgs& a) {
  const DenseAttentionArgs& f = a.forward;
  if (!a.deterministic) return f.B;
  const std::int64_t padded = (f.T + 127) / 128 * 128;
  std::int64_t rows = std::clamp<std::int64_t>((std::int64_t{1} << 30) / kBytes / padded / padded / f.H, 1, f.B);
  while (f.B % rows != 0) --rows;
  return rows;
}

DensePlanKey key_of(const DenseAttentionBackwardArgs& a) {
  DensePlanKey key = key_of(a.forward);
  key.B = rows_at_a_time(a);
  key.backward = true;
  key.statistics = true;
  key.deterministic = a.deterministic;
  return key;
}

std::size_t rotated_bytes(const DenseAttentionArgs& a) {
  return rotates(a) ? static_cast<std::size_t>(a.B * a.T * (a.H + a.Hkv) * a.D * kBytes) : 0;
}

// q, k and v where the kernels shall read them; `copy` receives rotated q and k.
DensePointers inputs(const DenseAttentionArgs& a, void* copy, Stream stream) {
  DensePointers p;
  const std::int64_t F = (a.H + 2 * a.Hkv) * a.D;
  p.q = a.qkv_BTF;
  p.v = at(a.qkv_BTF, (a.H + a.Hkv) * a.D);
  if (rotates(a)) {
    rotate_rows({.src = a.qkv_BTF,
                 .dst = copy,
                 .src_stride = F,
                 .dst_stride = (a.H + a.Hkv) * a.D,
                 .rows = a.B * a.T,
                 .T = a.T,
                 .heads = a.H + a.Hkv,
                 .D = a.D,
                 .rotary = a.rotary},
                stream);
    p.q = copy;
  }
  p.k = at(p.q, a.H * a.D);
  p.out = a.out_BTHD;
  p.statistics = a.statistics_BHT;
  return p;
}

}  // namespace

std::size_t workspace_bytes(const DenseAttentionArgs& a, Stream stream) {
  return plan_workspace_bytes(key_of(a), stream) + rotated_bytes(a);
}

std::size_t workspace_bytes(const DenseAttentionBackwardArgs& a, Stream stream) {
  return plan_workspace_bytes(key_of(a), stream) + rotated_bytes(a.forward);
}

void run(const DenseAttentionArgs& a, Stream stream) {
  const DensePlanKey key = key_of(a);
  const Scratch workspace(plan_workspace_bytes(key, stream), stream), copy(rotated_bytes(a), stream);
  run_plan(key, inputs(a, copy.as<void>(), stream), workspace.as<void>(), stream);
}

void run(const DenseAttentionBackwardArgs& a, Stream stream) {
  const DenseAttentionArgs& f = a.forward;
  const DensePlanKey key = key_of(a);
  const Scratch workspace(plan_workspace_bytes(key, stream), stream), copy(rotated_bytes(f), stream);
  const DensePointers in = inputs(f, copy.as<void>(), stream);
  const std::int64_t F = (f.H + 2 * f.Hkv) * f.D, qk = rotates(f) ? (f.H + f.Hkv) * f.D : F;
  for (std::int64_t b = 0; b < f.B; b += key.B) {
    const std::int64_t row = b * f.T;
    DensePointers p;
    p.q = at(in.q, row * qk);
    p.k = at(in.k, row * qk);
    p.v = at(in.v, row * F);
    p.out = at(in.out, row * f.H * f.D);
    p.statistics = static_cast<float*>(in.statistics) + row * f.H;
    p.dout = at(a.dout_BTHD, row * f.H * f.D);
    p.dq = at(a.dqkv_BTF, row * F);
    p.dk = at(p.dq, f.H * f.D);
    p.dv = at(p.dk, f.Hkv * f.D);
    run_plan(key, p, workspace.as<void>(), stream);
  }
  if (!rotates(f)) return;
  rotate_rows({.src = a.dqkv_BTF,
               .dst = a.dqkv_BTF,
               .src_stride = F,
               .dst_stride = F,
               .rows = f.B * f.T,
               .T = f.T,
               .heads = f.H + f.Hkv,
               .D = f.D,
               .rotary = f.rotary,
               .back = true},
              stream);
}

}  // namespace sieve::cuda
