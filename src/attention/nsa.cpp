#include "attention/nsa.h"

#include <cmath>
#include <utility>

#include "attention/document_starts.h"
#include "attention/kernels/nsa.h"
#include "attention/registry.h"
#include "autograd/record.h"

namespace sieve {
namespace {

CompressedGrid grid_of(const PatternSpec& p, std::int64_t B, std::int64_t T, const Tensor& starts) {
  if (p.compress_stride < 1 || p.compress_block < 1 || p.compress_block % p.compress_stride != 0)
    fail(Exit::config, "attention", "compress_stride ", p.compress_stride, " must divide compress_block ",
         p.compress_block, ", and both must be at least 1");
  require(T < (std::int64_t{1} << 31), "nsa", "T = ", T, " exceeds 2^31 - 1");
  CompressedGrid grid;
  grid.document_starts_BT = starts.defined() ? starts.data<std::int32_t>() : nullptr;
  grid.B = B, grid.T = T, grid.l = p.compress_block, grid.s = p.compress_stride;
  return grid;
}

struct JoinFeatures {
  static constexpr std::string_view name = "join_features";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 2;
  int axis = 0;
  std::int64_t left = 0;

  Tensor forward(const std::array<Tensor, 2>& in) {
    const Tensor &a = in[0], &b = in[1];
    bool alike = a.rank() == b.rank() && a.rank() >= 1 && a.dtype() == b.dtype();
    for (int x = 0; alike && x + 1 < a.rank(); ++x) alike = a.size(x) == b.size(x);
    require(alike, name, "wants two that differ in the last extent alone, got ", name_of(a.dtype()), " ", a.shape(),
            " and ", name_of(b.dtype()), " ", b.shape());
    axis = a.rank() - 1, left = a.size(axis);
    Shape shape = a.shape();
    shape.set(axis, left + b.size(axis));
    Tensor out = empty(shape, a.dtype(), a.stream());
    out.slice(axis, 0, left).copy_from(a);
    out.slice(axis, left, shape[axis]).copy_from(b);
    return out;
  }
  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2>) {
    return {grad.slice(axis, 0, left), grad.slice(axis, left, grad.size(axis))};
  }
};

struct CompressRows {
  static constexpr std::string_view name = "compress_rows";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 2;
  Tensor starts;
  CompressRowsArgs args;
  Shape x_shape;

  Tensor forward(const std::array<Tensor, 2>& in, std::int64_t heads, const PatternSpec& spec,
                 const Tensor& documents) {
    require(in[0].rank() == 3 && heads >= 1 && in[0].size(2) % heads == 0, name, "wants x (B, T, ", heads,
            " heads), got ", in[0].shape());
    const std::int64_t B = in[0].size(0), T = in[0].size(1), D = in[0].size(2) / heads;
    starts = checked_starts(documents, B, T, in[0].device(), name);
    args.grid = grid_of(spec, B, T, starts);
    require(in[1].shape() == Shape{args.grid.l, D} && in[1].dtype() == in[0].dtype(), name, "wants positions ",
            name_of(in[0].dtype()), " ", Shape{args.grid.l, D}, ", got ", name_of(in[1].dtype()), " ", in[1].shape());
    const Tensor x = in[0].contiguous(), positions = in[1].contiguous();
    x_shape = x.shape();
    Tensor out = empty({B, heads, args.grid.M(), args.grid.l * D}, x.dtype(), x.stream());
    args.x_BTF = x.raw(), args.positions_LD = positions.raw(), args.out_BHML = out.raw();
    args.H = heads, args.D = D, args.dtype = x.dtype();
    launch(x.stream(), args);
    return out;
  }
  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2> need) {
    CompressRowsBackwardArgs back;
    back.forward = args, back.grad_BHML = grad.raw();
    Tensor dx = empty(x_shape, grad.dtype(), grad.stream()), dpositions;
    back.dx_BTF = dx.raw();
    if (need[1]) {
      dpositions = empty({args.grid.l, args.D}, compute_dtype(grad.dtype()), grad.stream());
      back.dpositions_LD = dpositions.raw();
    }
    launch(grad.stream(), back);
    return {dx, dpositions};
  }
};

struct CompressedAttention {
  static constexpr std::string_view name = "compressed_attention";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 3;
  Tensor q, k, v, starts, out, statistics;
  CompressedAttentionArgs args;

  Tensor forward(const std::array<Tensor, 3>& in, const AttentionSpec& spec, std::int64_t T, const Tensor& documents,
                 Tensor* choice) {
    check_attention(spec, {});
    const std::int64_t B = in[0].size(0), N = in[0].size(1), D = spec.head_dim;
    starts = checked_starts(documents, B, T, in[0].device(), name);
    require(!starts.defined() || N == T, name, "has documents for ", T, " positions and ", N, " queries");
    args.grid = grid_of(spec.pattern, B, T, starts);
    const Shape keys{B, spec.n_kv_heads, args.grid.M(), D};
    require(in[0].rank() == 3 && in[0].size(2) == spec.n_heads * D && N <= T && in[1].shape() == keys &&
                in[2].shape() == keys && in[1].dtype() == in[0].dtype() && in[2].dtype() == in[0].dtype(),
            name, "wants q (B, N, ", spec.n_heads * D, ") and k, v ", keys, " of one dtype; got ", in[0].shape(), ", ",
            in[1].shape(), " and ", in[2].shape());
    const DType exact = compute_dtype(in[0].dtype());
    const bool gpu = in[0].device().is_cuda();
    const auto dense = [&](const Tensor& t) { return gpu ? t.contiguous() : t.contiguous().to(exact); };
    q = in[0].contiguous(), k = dense(in[1]), v = dense(in[2]);
    out = empty({B, N, spec.n_heads * D}, q.dtype(), q.stream());
    if (gpu) statistics = empty({B, spec.n_heads, N}, exact, q.stream());
    args.q_BNF = q.raw(), args.k_BHMD = k.raw(), args.v_BHMD = v.raw(), args.out_BNF = out.raw();
    if (gpu) args.statistics_BHN = statistics.raw();
    args.N = N, args.H = spec.n_heads, args.Hkv = spec.n_kv_heads, args.D = D;
    args.scale = 1 / std::sqrt(static_cast<double>(D)), args.dtype = q.dtype();
    if (choice != nullptr) choose(spec, *choice);
    launch(q.stream(), args);
    args.choice_BHNC = nullptr;
    if (gpu) return out;
    return std::exchange(out, {});  // which the CPU's backward does not need
  }

  void choose(const AttentionSpec& spec, Tensor& choice) {
    const PatternSpec& p = spec.pattern;
    if (p.block < 1 || p.blocks < 1 || p.block % p.compress_stride != 0)
      fail(Exit::config, "attention", "block ", p.block, " must be a multiple of compress_stride ", p.compress_stride,
           ", and blocks ", p.blocks, " at least 1");
    choice = empty({args.grid.B, args.Hkv, args.N, p.blocks}, DType::i32, q.stream());
    args.block = p.block, args.blocks = p.blocks, args.choice_BHNC = choice.data<std::int32_t>();
  }

  std::array<Tensor, 3> backward(const Tensor& grad, Needs<3>) {
    const DType exact = compute_dtype(q.dtype());
    Tensor dq = empty_like(q), dk = empty(k.shape(), exact, q.stream()), dv = empty(v.shape(), exact, q.stream());
    CompressedAttentionBackwardArgs back;
    back.forward = args, back.dout_BNF = grad.raw();
    back.dq_BNF = dq.raw(), back.dk_BHMD = dk.raw(), back.dv_BHMD = dv.raw();
    launch(q.stream(), back);
    return {dq, dk, dv};
  }
};

struct GateBranches {
  static constexpr std::string_view name = "gate_branches";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 4;
  std::array<Tensor, 4> saved;
  GateBranchesArgs args;

  Tensor forward(const std::array<Tensor, 4>& in, std::int64_t heads) {
    const Tensor& x = in[0];
    require(x.rank() == 3 && heads >= 1 && x.size(2) % heads == 0 && in[1].shape() == x.shape() &&
                in[2].shape() == x.shape() && in[3].shape() == Shape{x.size(0), x.size(1), 3 * heads},
            name, "wants three (B, T, ", heads, " heads) and gates (B, T, ", 3 * heads, "), got ", x.shape(), ", ",
            in[1].shape(), ", ", in[2].shape(), " and ", in[3].shape());
    for (std::size_t c = 0; c < in.size(); ++c) {
      require(in[c].dtype() == x.dtype(), name, "dtypes differ: ", name_of(in[c].dtype()), " and ", name_of(x.dtype()));
      saved[c] = in[c].contiguous();
    }
    Tensor out = empty(x.shape(), x.dtype(), x.stream());
    for (std::size_t c = 0; c < 3; ++c) args.x_RF[c] = saved[c].raw();
    args.gates_RCH = saved[3].raw(), args.out_RF = out.raw();
    args.R = x.size(0) * x.size(1), args.H = heads, args.D = x.size(2) / heads, args.dtype = x.dtype();
    launch(x.stream(), args);
    return out;
  }
  std::array<Tensor, 4> backward(const Tensor& grad, Needs<4>) {
    GateBranchesBackwardArgs back;
    back.forward = args, back.dout_RF = grad.raw();
    std::array<Tensor, 4> grads;
    for (std::size_t c = 0; c < 4; ++c) grads[c] = empty_like(saved[c]);
    for (std::size_t c = 0; c < 3; ++c) back.dx_RF[c] = grads[c].raw();
    back.dgates_RCH = grads[3].raw();
    launch(grad.stream(), back);
    return grads;
  }
};

}  // namespace

Variable join_features(const Variable& a, const Variable& b) { return record<JoinFeatures>({a, b}); }

Variable compress_rows(const Variable& x, const Variable& positions, std::int64_t heads, const PatternSpec& spec,
                       const Tensor& document_starts) {
  return record<CompressRows>({x, positions}, heads, spec, document_starts);
}

Variable compressed_attention(const Variable& q, const Variable& k, const Variable& v, const AttentionSpec& spec,
                              std::int64_t T, const Tensor& document_starts, Tensor* choice) {
  return record<CompressedAttention>({q, k, v}, spec, T, document_starts, choice);
}

Variable gate_branches(const Variable& x0, const Variable& x1, const Variable& x2, const Variable& gates,
                       std::int64_t heads) {
  return record<GateBranches>({x0, x1, x2, gates}, heads);
}

}  // namespace sieve
