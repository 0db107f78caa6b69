#include "attention/rotate.h"

#include "attention/document_starts.h"
#include "attention/kernels/rotate.h"
#include "attention/registry.h"
#include "attention/rotary.h"
#include "autograd/record.h"

namespace sieve {
namespace {

// What forward and backward of both ops share.
struct Rotation {
  std::int64_t B = 0, H = 0, T = 0, D = 0, turned = 0, first = 0;
  RopeSpec rope;
  Tensor starts;

  // heads of (B, T, H D) with these strides, or of (B, H, T, D)
  HeadStrides as_rows(const Tensor& rows) const { return {rows.stride(0), D, rows.stride(1)}; }
  HeadStrides as_heads() const { return {H * T * D, T * D, D}; }

  void set(const Tensor& x, std::int64_t heads, const RopeSpec& how, std::int64_t position, std::string_view op) {
    require(x.rank() == 3 && heads >= 1 && x.size(2) % heads == 0, op, "wants x (B, T, ", heads, " heads), got ",
            x.shape());
    B = x.size(0), T = x.size(1), H = turned = heads, D = x.size(2) / heads, first = position, rope = how;
    require(rope.rotary_dims <= D && rope.rotary_dims % 2 == 0, op, "turns ", rope.rotary_dims, " of ", D, " features");
  }

  void run(const Tensor& x, const HeadStrides& from, const Tensor& out, const HeadStrides& to, bool back) const {
    const RotaryTable table_of = rotary_table(rope, first + T, compute_dtype(x.dtype()), x.stream());
    RotateArgs args;
    args.x = x.raw(), args.out = out.raw(), args.from = from, args.to = to;
    args.B = B, args.H = H, args.T = T, args.D = D, args.turned = turned, args.first_position = first, args.back = back;
    if (starts.defined()) args.document_starts_BT = starts.data<std::int32_t>();
    args.dtype = x.dtype();
    if (table_of.cos.defined()) args.rotary = {table_of.cos.raw(), table_of.sin.raw(), rope.rotary_dims, -1};
    launch(x.stream(), args);
  }
};

// A slice of qkv is read in place.
Tensor dense_rows(const Tensor& x) { return x.stride(2) == 1 ? x : x.contiguous(); }

struct RotateHeads {
  static constexpr std::string_view name = "rotate_heads";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 1;
  Rotation how;

  Tensor forward(const std::array<Tensor, 1>& in, std::int64_t heads, const RopeSpec& rope, std::int64_t position) {
    how.set(in[0], heads, rope, position, name);
    Tensor out = empty({how.B, how.H, how.T, how.D}, in[0].dtype(), in[0].stream());
    const Tensor x = dense_rows(in[0]);
    how.run(x, how.as_rows(x), out, how.as_heads(), false);
    return out;
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor dx = empty({how.B, how.T, how.H * how.D}, grad.dtype(), grad.stream());
    how.run(grad, how.as_heads(), dx, how.as_rows(dx), true);
    return {dx};
  }
};

struct RotateFirstHeads {
  static constexpr std::string_view name = "rotate_first_heads";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 1;
  Rotation how;

  Tensor forward(const std::array<Tensor, 1>& in, std::int64_t heads, std::int64_t turned, const RopeSpec& rope,
                 const Tensor& starts, std::int64_t position) {
    how.set(in[0], heads, rope, position, name);
    require(turned >= 0 && turned <= heads, name, "turns ", turned, " of ", heads, " heads");
    how.turned = turned, how.starts = checked_starts(starts, how.B, how.T, in[0].device(), name);
    Tensor out = empty(in[0].shape(), in[0].dtype(), in[0].stream());
    const Tensor x = dense_rows(in[0]);
    how.run(x, how.as_rows(x), out, how.as_rows(out), false);
    return out;
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor dx = empty(grad.shape(), grad.dtype(), grad.stream());
    how.run(grad, how.as_rows(grad), dx, how.as_rows(dx), true);
    return {dx};
  }
};

}  // namespace

Variable rotate_heads(const Variable& x, std::int64_t heads, const RopeSpec& rope, std::int64_t first_position) {
  return record<RotateHeads>({x}, heads, rope, first_position);
}

Variable rotate_first_heads(const Variable& x, std::int64_t heads, std::int64_t turned, const RopeSpec& rope,
                            const Tensor& document_starts, std::int64_t first_position) {
  return record<RotateFirstHeads>({x}, heads, turned, rope, document_starts, first_position);
}

}  // namespace sieve
