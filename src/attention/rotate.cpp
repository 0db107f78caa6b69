#include "attention/rotate.h"

#include "attention/kernels/rotate.h"
#include "attention/registry.h"
#include "attention/rotary.h"
#include "autograd/record.h"

namespace sieve {
namespace {

struct RotateHeads {
  static constexpr std::string_view name = "rotate_heads";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 1;
  std::int64_t B = 0, H = 0, T = 0, D = 0, first = 0;
  RopeSpec rope;

  // heads of (B, T, H D) with these strides, or of (B, H, T, D)
  HeadStrides as_rows(const Tensor& rows) const { return {rows.stride(0), D, rows.stride(1)}; }
  HeadStrides as_heads() const { return {H * T * D, T * D, D}; }

  void run(const Tensor& x, const HeadStrides& from, const Tensor& out, const HeadStrides& to, bool back) const {
    const RotaryTable table_of = rotary_table(rope, first + T, compute_dtype(x.dtype()), x.stream());
    RotateArgs args;
    args.x = x.raw(), args.out = out.raw(), args.from = from, args.to = to;
    args.B = B, args.H = H, args.T = T, args.D = D, args.first_position = first, args.back = back;
    args.dtype = x.dtype();
    if (table_of.cos.defined()) args.rotary = {table_of.cos.raw(), table_of.sin.raw(), rope.rotary_dims, -1};
    launch(x.stream(), args);
  }

  Tensor forward(const std::array<Tensor, 1>& in, std::int64_t heads, const RopeSpec& how, std::int64_t position) {
    require(in[0].rank() == 3 && heads >= 1 && in[0].size(2) % heads == 0, name, "wants x (B, T, ", heads,
            " heads), got ", in[0].shape());
    B = in[0].size(0), T = in[0].size(1), H = heads, D = in[0].size(2) / heads, first = position, rope = how;
    require(rope.rotary_dims <= D && rope.rotary_dims % 2 == 0, name, "turns ", rope.rotary_dims, " of ", D,
            " features");
    Tensor out = empty({B, H, T, D}, in[0].dtype(), in[0].stream());
    const Tensor x = in[0].stride(2) == 1 ? in[0] : in[0].contiguous();  // a slice of qkv is read in place
    run(x, as_rows(x), out, as_heads(), false);
    return out;
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor dx = empty({B, T, H * D}, grad.dtype(), grad.stream());
    run(grad, as_heads(), dx, as_rows(dx), true);
    return {dx};
  }
};

}  // namespace

Variable rotate_heads(const Variable& x, std::int64_t heads, const RopeSpec& rope, std::int64_t first_position) {
  return record<RotateHeads>({x}, heads, rope, first_position);
}

}  // namespace sieve
