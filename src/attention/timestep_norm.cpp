#include "attention/timestep_norm.h"

#include <cmath>

#include "attention/document_starts.h"
#include "attention/kernels/timestep_norm.h"
#include "attention/registry.h"
#include "autograd/record.h"
#include "tensor/dispatch.h"
#include "tensor/same_device.h"

namespace sieve {
namespace {

TimestepNormArgs arguments(const Tensor& s, const Tensor& gain, const Tensor& starts) {
  require(s.rank() == 3 && gain.numel() == s.size(1), "timestep_norm", "wants s (B, Hs, T) and gain (Hs), got ",
          s.shape(), " and ", gain.shape());
  require(s.dtype() == gain.dtype(), "timestep_norm", "scores are ", name_of(s.dtype()), ", gain ",
          name_of(gain.dtype()));
  TimestepNormArgs args;
  args.s_BHT = s.raw(), args.gain_H = gain.raw();
  if (starts.defined()) args.document_starts_BT = starts.data<std::int32_t>();
  args.B = s.size(0), args.H = s.size(1), args.T = s.size(2);
  args.prior_count = kTimestepPriorCount, args.eps = kTimestepEps, args.dtype = s.dtype();
  return args;
}

struct TimestepNorm {
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::string_view name = "timestep_norm";
  static constexpr std::size_t arity = 2;
  Tensor s, gain, starts;

  Tensor forward(const std::array<Tensor, 2>& in, const Tensor& document_starts) {
    s = in[0].contiguous(), gain = in[1].contiguous();
    require(s.rank() == 3, name, "wants s (B, Hs, T), got ", s.shape());
    starts = checked_starts(document_starts, s.size(0), s.size(2), s.device(), name);
    Tensor out = empty_like(s);
    TimestepNormArgs args = arguments(s, gain, starts);
    args.out_BHT = out.raw();
    launch(s.stream(), args);
    return out;
  }

  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2>) {
    const Tensor g = grad.contiguous();
    Tensor ds = empty_like(s), dgain = empty_like(gain);
    TimestepNormBackwardArgs args;
    args.forward = arguments(s, gain, starts);
    args.grad_BHT = g.raw(), args.ds_BHT = ds.raw(), args.dgain_H = dgain.raw();
    launch(s.stream(), args);
    return {ds, dgain};
  }
};

}  // namespace

Variable timestep_norm(const Variable& s, const Variable& gain, const Tensor& document_starts) {
  return record<TimestepNorm>({s, gain}, document_starts);
}

Tensor timestep_norm_extend(const Tensor& s, const Tensor& gain, RunningScore& running) {
  require_on(s.device(), "timestep_norm",
             {{"gain", gain},
              {"running.count", running.count},
              {"running.sum", running.sum},
              {"running.squares", running.squares}});
  const Tensor in = s.contiguous();
  const std::int64_t rows = s.size(0) * s.size(1);
  if (!running.count.defined()) {
    running.count = full({rows}, kTimestepPriorCount, DType::f64, s.stream());
    running.sum = zeros({rows}, DType::f64, s.stream());
    running.squares = full({rows}, kTimestepPriorCount, DType::f64, s.stream());
  }
  require(running.count.numel() == rows, "timestep_norm", "running statistics of ", running.count.numel(),
          " rows, scores of ", rows);
  Tensor out = empty_like(in);
  TimestepNormArgs args = arguments(in, gain.contiguous(), {});
  args.out_BHT = out.raw();
  args.count_BH = running.count.data<double>();
  args.sum_BH = running.sum.data<double>();
  args.squares_BH = running.squares.data<double>();
  launch(s.stream(), args);
  return out;
}

}  // namespace sieve
