// cross_entropy and linear_cross_entropy. N rows, C channels, V vocabulary.
#include <algorithm>

#include "autograd/ops.h"
#include "autograd/ops/args.h"
#include "autograd/record.h"

namespace sieve {
namespace {

Tensor total_of(const Tensor& losses) {
  Tensor total = empty({}, DType::f64, losses.stream());
  launch(losses.stream(),
         SumArgs{.x = losses.raw(), .sum = total.data<double>(), .n = losses.numel(), .dtype = losses.dtype()});
  return total.to(losses.dtype());
}

struct CrossEntropy {
  static constexpr std::string_view name = "cross_entropy";
  static constexpr std::size_t arity = 1;
  Tensor logits, targets;

  Tensor forward(const std::array<Tensor, 1>& in, const Tensor& wanted) {
    require_float(in[0], name);
    require_ids(wanted, in[0].device(), name, "targets");
    require(in[0].rank() == 2 && wanted.shape() == Shape{in[0].size(0)}, name,
            "wants logits (N, V) and targets (N), got ", in[0].shape(), " and ", wanted.shape());
    logits = in[0].contiguous();
    targets = wanted.contiguous();
    Tensor losses = empty(targets.shape(), compute_dtype(logits.dtype()), logits.stream());
    CrossEntropyArgs args = rows();
    args.losses_R = losses.raw();
    launch(logits.stream(), args);
    return total_of(losses);
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor dlogits = empty(logits.shape(), logits.dtype(), logits.stream());
    CrossEntropyArgs args = rows();
    args.dlogits_RV = dlogits.raw();
    args.grad_factor = grad.raw();  // the host need not know it
    launch(logits.stream(), args);
    return {dlogits};
  }

  CrossEntropyArgs rows() const {
    return {.logits_RV = logits.raw(),
            .targets_R = targets.data<std::int32_t>(),
            .R = logits.size(0),
            .V = logits.size(1),
            .ld = logits.size(1),
            .dtype = logits.dtype(),
            .dlogits_dtype = logits.dtype()};
  }
};

// Forward makes both gradients while a chunk of logits is at hand, for a loss gradient of 1; backward multiplies them
// by the real one. The sums over rows (dW) run over chunks in order, so the result depends on the shapes alone.
struct LinearCrossEntropy {
  static constexpr std::string_view name = "linear_cross_entropy";
  static constexpr std::size_t arity = 2;
  Needs<2> need{};
  bool unit_grad = false;
  Tensor dx, dw;  // for a loss gradient of 1
  DType dtype = DType::f32;

  Tensor forward(const std::array<Tensor, 2>& in, const Tensor& targets, Tensor* losses_out, std::int64_t chunk_rows) {
    check(in[0], in[1], targets);
    const Tensor x = in[0].contiguous(), w = in[1].contiguous(), wanted = targets.contiguous();
    dtype = x.dtype();
    const std::int64_t N = x.size(0), C = x.size(1), V = w.size(0);
    const DType exact = compute_dtype(dtype);
    const LossChunk chunk = loss_chunk(x.device(), N, C, V, dtype, chunk_rows);
    Tensor losses = empty({N}, exact, x.stream());
    const Tensor logits = empty({chunk.rows, chunk.ld}, chunk.logits, x.stream());
    Tensor dlogits;
    if (need[0]) dx = empty(x.shape(), x.device().is_cuda() ? dtype : exact, x.stream());
    if (need[1]) dw = N > 0 ? empty(w.shape(), exact, x.stream()) : zeros(w.shape(), exact, x.stream());
    if (need[0] || need[1]) dlogits = dtype == chunk.logits ? logits : empty(logits.shape(), dtype, x.stream());
    for (std::int64_t begin = 0; begin < N; begin += chunk.rows) {
      const std::int64_t end = std::min(N, begin + chunk.rows), R = end - begin;
      const Tensor part = x.slice(0, begin, end);
      multiply(part, w, logits, {.M = R, .N = V, .K = C, .ldc = chunk.ld, .transpose_b = true});
      launch(x.stream(), CrossEntropyArgs{.logits_RV = logits.raw(),
                                          .targets_R = wanted.slice(0, begin, end).data<std::int32_t>(),
                                          .losses_R = losses.slice(0, begin, end).raw(),
                                          .dlogits_RV = dlogits.defined() ? dlogits.raw() : nullptr,
                                          .R = R,
                                          .V = V,
                                          .ld = chunk.ld,
                                          .dtype = chunk.logits,
                                          .dlogits_dtype = dtype});
      if (need[0]) multiply(dlogits, w, dx.slice(0, begin, end), {.M = R, .N = C, .K = V, .lda = chunk.ld});
      if (need[1])
        multiply(dlogits, part, dw,
                 {.M = V, .N = C, .K = R, .lda = chunk.ld, .transpose_a = true, .beta = begin > 0 ? 1.0 : 0.0});
    }
    if (losses_out) *losses_out = losses;
    return total_of(losses);
  }

  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2>) {
    std::array<Tensor, 2> out;
    if (need[0]) out[0] = times(dx, grad, dtype);
    if (need[1]) out[1] = times(dw, grad, dw.dtype());
    return out;
  }

  // In place where the dtype stays, and not at all for the 1 of a plain backward: the gradient of W may be half a
  // gigabyte. The factor is read where it lies.
  Tensor times(const Tensor& t, const Tensor& factor, DType to) const {
    if (t.dtype() == to && unit_grad) return t;
    const Tensor out = t.dtype() == to ? t : empty(t.shape(), to, t.stream());
    launch(t.stream(), AxpbyArgs{.x = t.raw(),
                                 .y = out.raw(),
                                 .n = t.numel(),
                                 .alpha = 1,
                                 .beta = 0,
                                 .x_dtype = t.dtype(),
                                 .y_dtype = to,
                                 .alpha_factor = factor.raw()});
    return out;
  }

  static void check(const Tensor& x, const Tensor& w, const Tensor& targets) {
    require_float(x, name);
    require_float(w, name);
    require_same_dtype(x, w, name);
    require_ids(targets, x.device(), name, "targets");
    require(x.rank() == 2 && w.rank() == 2 && x.size(1) == w.size(1) && targets.shape() == Shape{x.size(0)}, name,
            "wants x (N, C), w (V, C) and targets (N), got ", x.shape(), ", ", w.shape(), " and ", targets.shape());
  }
};

}  // namespace

LossChunk loss_chunk(Device device, std::int64_t N, std::int64_t C, std::int64_t V, DType dtype, std::int64_t wanted) {
  LossChunk out;
  // CPU: as many rows as channels: a chunk of logits is then as large as dW, which every chunk has to read and write.
  // GPU: 8,192 rows of a vocabulary of 50,304 in bf16 are 786 MiB, read and written about six times; the 147 MiB of an
  // fp32 dW read and written beside them are a tenth of that, and a product of so many rows fills the machine.
  const std::int64_t fitting = device.is_cuda() ? 8192 : std::max<std::int64_t>(C, 256);
  out.rows = std::min(N, wanted > 0 ? wanted : fitting);
  // A GPU's products want rows that begin at multiples of 16 bytes: GPT-2's vocabulary of 50,257 is odd.
  out.ld = device.is_cuda() ? (V + 63) / 64 * 64 : V;
  out.logits = device.is_cuda() ? dtype : compute_dtype(dtype);
  return out;
}

Variable cross_entropy(const Variable& logits, const Tensor& targets) {
  return record<CrossEntropy>({logits}, targets);
}
Variable linear_cross_entropy(const Variable& x, const Variable& w, const Tensor& targets, Tensor* losses,
                              std::int64_t chunk_rows) {
  return record<LinearCrossEntropy>({x, w}, targets, losses, chunk_rows);
}

}  // namespace sieve
