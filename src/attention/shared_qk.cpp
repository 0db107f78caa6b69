#include "attention/shared_qk.h"

#include "attention/kernels/shared_qk.h"
#include "attention/registry.h"
#include "autograd/record.h"

namespace sieve {
namespace {

struct SharedQk {
  static constexpr std::string_view name = "shared_qk";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 1;
  Tensor qv;
  SharedQkArgs args;

  Tensor forward(const std::array<Tensor, 1>& in, std::int64_t H, std::int64_t Hv, std::int64_t D) {
    require(in[0].rank() == 3 && H >= 1 && Hv >= 1 && H % Hv == 0 && in[0].size(2) == (H + Hv) * D, name,
            "wants (B, T, (", H, " + ", Hv, ") * ", D, "), got ", in[0].shape());
    qv = in[0].contiguous();
    Tensor out = empty({qv.size(0), qv.size(1), 3 * H * D}, qv.dtype(), qv.stream());
    args.qv_BTF = qv.raw(), args.qkv_BTF = out.raw();
    args.B = qv.size(0), args.T = qv.size(1), args.H = H, args.Hv = Hv, args.D = D, args.dtype = qv.dtype();
    launch(qv.stream(), args);
    return out;
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor dqv = empty_like(qv);
    SharedQkBackwardArgs back;
    back.forward = args, back.grad_BTF = grad.raw(), back.dqv_BTF = dqv.raw();
    launch(qv.stream(), back);
    return {dqv};
  }
};

}  // namespace

Variable shared_qk(const Variable& qv, std::int64_t heads, std::int64_t value_heads, std::int64_t head_dim) {
  return record<SharedQk>({qv}, heads, value_heads, head_dim);
}

}  // namespace sieve
