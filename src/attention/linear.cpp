#include "attention/linear.h"

#include "attention/document_starts.h"
#include "attention/kernels/linear.h"
#include "attention/registry.h"
#include "autograd/record.h"
#include "core/error.h"
#include "tensor/same_device.h"

namespace sieve {
namespace {

void check_shape(const Tensor& qkv, const LinearShape& s, std::string_view op) {
  require(s.H >= 1 && s.Hkv >= 1 && s.H % s.Hkv == 0 && s.D >= 1 && s.V >= 1, op, "of ", s.H, " heads, ", s.Hkv,
          " key-value heads, ", s.D, " and ", s.V, " features");
  require(qkv.defined() && qkv.rank() == 3 && qkv.size(2) == s.features() && is_float(qkv.dtype()), op,
          "wants qkv (B, T, ", s.features(), "), got ", qkv.defined() ? qkv.shape().str() : "nothing");
  require(qkv.size(1) < (std::int64_t{1} << 31), op, "T = ", qkv.size(1), " exceeds 2^31 - 1");
}

// All that forward, backward and generation share. The tensors must outlive it and be contiguous.
LinearArgs arguments(const Tensor& qkv, const Tensor& gates, const LinearShape& s, const Tensor& starts,
                     const KeyExits& exits) {
  LinearArgs args;
  args.qkv_BTF = qkv.raw();
  if (gates.defined()) args.gates_BTHD = gates.raw();
  if (starts.defined()) args.document_starts_BT = starts.data<std::int32_t>();
  args.B = qkv.size(0), args.T = qkv.size(1), args.H = s.H, args.Hkv = s.Hkv, args.D = s.D, args.V = s.V;
  args.power = kGatePower, args.dtype = qkv.dtype();
  if (exits.first.defined()) {
    require_on(qkv.device(), "linear_attention", {{"exits.first", exits.first}, {"exits.keys", exits.keys}});
    args.Hs = exits.first.size(1);
    require(exits.first.shape() == Shape{args.B, args.Hs, args.T + 1} &&
                exits.keys.shape() == Shape{args.B, args.Hs, args.T} && (args.Hs == 1 || args.Hs == s.Hkv),
            "linear_attention", "exits ", exits.first.shape(), " and ", exits.keys.shape(), " beside qkv ",
            qkv.shape());
    args.entry_first_BHT = exits.first.data<std::int32_t>(), args.entry_keys_BHT = exits.keys.data<std::int32_t>();
  }
  return args;
}

// Forward and backward of both ops.
struct Recurrence {
  Tensor qkv, gates, starts, sums, chunk_states;
  LinearShape shape;
  KeyExits exits;

  Tensor forward(bool keeps) {
    const std::int64_t B = qkv.size(0), T = qkv.size(1);
    LinearArgs args = arguments(qkv, gates, shape, starts, exits);
    Tensor out = empty({B, T, shape.H * shape.V}, qkv.dtype(), qkv.stream());
    args.out_BTHV = out.raw();
    const DType exact = compute_dtype(qkv.dtype());
    if (keeps) {
      chunk_states = empty({B, shape.Hkv, args.chunks(), shape.D * args.columns()}, exact, qkv.stream());
      if (!args.gated()) sums = empty({B, T, shape.H}, exact, qkv.stream());
      keep(args);
    }
    launch(qkv.stream(), args);
    return out;
  }

  // dqkv, and dgates where there are gates.
  std::array<Tensor, 2> backward(const Tensor& out, const Tensor& grad) {
    LinearBackwardArgs args;
    args.forward = arguments(qkv, gates, shape, starts, exits);
    if (out.defined()) args.forward.out_BTHV = out.raw();
    keep(args.forward);
    Tensor dqkv = empty_like(qkv), dgates = gates.defined() ? empty_like(gates) : Tensor();
    args.dout_BTHV = grad.raw(), args.dqkv_BTF = dqkv.raw();
    if (dgates.defined()) args.dgates_BTHD = dgates.raw();
    launch(qkv.stream(), args);
    return {dqkv, dgates};
  }

  void keep(LinearArgs& args) const {
    args.chunk_states = chunk_states.raw();
    if (sums.defined()) args.sums_BTH = sums.raw();
  }
};

struct LinearAttention {
  static constexpr std::string_view name = "linear_attention";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 1;
  Needs<1> need{};
  Recurrence run;
  Tensor out;  // a GPU's backward reads it

  Tensor forward(const std::array<Tensor, 1>& in, const LinearShape& shape, const Tensor& starts,
                 const KeyExits& exits) {
    check_shape(in[0], shape, name);
    run.qkv = in[0].contiguous(), run.shape = shape, run.exits = exits;
    run.starts = checked_starts(starts, in[0].size(0), in[0].size(1), in[0].device(), name);
    const Tensor result = run.forward(need[0]);
    if (need[0] && result.device().is_cuda()) out = result;
    return result;
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) { return {run.backward(out, grad)[0]}; }
};

struct GatedLinearAttention {
  static constexpr std::string_view name = "gated_linear_attention";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 2;
  Needs<2> need{};
  Recurrence run;

  Tensor forward(const std::array<Tensor, 2>& in, const LinearShape& shape, const Tensor& starts) {
    check_shape(in[0], shape, name);
    const std::int64_t B = in[0].size(0), T = in[0].size(1);
    require(in[1].defined() && in[1].shape() == Shape{B, T, shape.Hkv * shape.D} && in[1].dtype() == in[0].dtype(),
            name, "wants gates ", name_of(in[0].dtype()), " ", Shape{B, T, shape.Hkv * shape.D}, ", got ",
            in[1].defined() ? cat(name_of(in[1].dtype()), " ", in[1].shape()) : "nothing");
    run.qkv = in[0].contiguous(), run.gates = in[1].contiguous(), run.shape = shape;
    run.starts = checked_starts(starts, B, T, in[0].device(), name);
    return run.forward(need[0] || need[1]);
  }
  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2>) { return run.backward({}, grad); }
};

struct SiluGate {
  static constexpr std::string_view name = "silu_gate";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 2;
  Tensor x, gate;

  Tensor forward(const std::array<Tensor, 2>& in) {
    require(in[0].shape() == in[1].shape() && in[0].dtype() == in[1].dtype(), name, "wants two alike, got ",
            name_of(in[0].dtype()), " ", in[0].shape(), " and ", name_of(in[1].dtype()), " ", in[1].shape());
    x = in[0].contiguous(), gate = in[1].contiguous();
    Tensor y = empty(x.shape(), x.dtype(), x.stream());
    SiluGateArgs args;
    args.x = x.raw(), args.gate = gate.raw(), args.y = y.raw(), args.n = x.numel(), args.dtype = x.dtype();
    launch(x.stream(), args);
    return y;
  }
  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2>) {
    Tensor dx = empty_like(x), dgate = empty_like(gate);
    SiluGateBackwardArgs args;
    args.dy = grad.raw(), args.x = x.raw(), args.gate = gate.raw(), args.dx = dx.raw(), args.dgate = dgate.raw();
    args.n = x.numel(), args.dtype = x.dtype();
    launch(x.stream(), args);
    return {dx, dgate};
  }
};

struct AddGatedHeads {
  static constexpr std::string_view name = "add_gated_heads";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 3;
  Tensor x, gate;

  HeadGateArgs arguments() const {
    HeadGateArgs args;
    args.x_RHD = x.raw(), args.gate_H = gate.raw(), args.dtype = x.dtype();
    args.R = x.size(0) * x.size(1), args.H = gate.numel(), args.D = x.size(2) / gate.numel();
    return args;
  }
  Tensor forward(const std::array<Tensor, 3>& in) {
    const auto& [base, add, gates] = in;
    require(base.rank() == 3 && base.shape() == add.shape() && gates.rank() == 1 && gates.numel() >= 1 &&
                base.size(2) % gates.numel() == 0 && base.dtype() == add.dtype() && base.dtype() == gates.dtype(),
            name, "wants base and x (B, T, H D) and gate (H) of one dtype, got ", base.shape(), ", ", add.shape(),
            " and ", gates.shape());
    x = add.contiguous(), gate = gates.contiguous();
    const Tensor from = base.contiguous();
    Tensor out = empty(x.shape(), x.dtype(), x.stream());
    HeadGateArgs args = arguments();
    args.base_RHD = from.raw(), args.out_RHD = out.raw();
    launch(x.stream(), args);
    return out;
  }
  std::array<Tensor, 3> backward(const Tensor& grad, Needs<3>) {
    Tensor dx = empty_like(x), dgate = empty(gate.shape(), compute_dtype(gate.dtype()), gate.stream());
    HeadGateBackwardArgs args;
    args.forward = arguments();
    args.dout_RHD = grad.raw(), args.dx_RHD = dx.raw(), args.dgate_H = dgate.raw();
    launch(x.stream(), args);
    return {grad, dx, dgate};
  }
};

Tensor extend(const Tensor& qkv_in, const Tensor& gates_in, const LinearShape& shape, const KeyExits& exits,
              Tensor& state, std::string_view op) {
  check_shape(qkv_in, shape, op);
  require_on(qkv_in.device(), op, {{"gates", gates_in}, {"the state", state}});
  const Tensor qkv = qkv_in.contiguous(), gates = gates_in.defined() ? gates_in.contiguous() : Tensor();
  LinearArgs args = arguments(qkv, gates, shape, {}, exits);
  const Shape wanted{qkv.size(0), shape.Hkv, shape.D, args.columns()};
  if (!state.defined()) state = zeros(wanted, compute_dtype(qkv.dtype()), qkv.stream());
  require(state.shape() == wanted, op, "continues a state ", state.shape(), " with qkv ", qkv.shape());
  Tensor out = empty({qkv.size(0), qkv.size(1), shape.H * shape.V}, qkv.dtype(), qkv.stream());
  args.out_BTHV = out.raw(), args.state_BHDV = state.raw();
  launch(qkv.stream(), args);
  return out;
}

}  // namespace

KeyExits key_exits(const Tensor& from, const Tensor& to, std::int64_t window, const Tensor& document_starts) {
  require(from.defined() && from.rank() == 3 && from.dtype() == DType::i32 && to.shape() == from.shape() &&
              to.dtype() == DType::i32 && window >= 0,
          "key_exits", "wants from and to i32 (B, Hs, T) and a window, got ", from.shape(), ", ", to.shape(), " and ",
          window);
  const std::int64_t B = from.size(0), Hs = from.size(1), T = from.size(2);
  const Tensor begins = from.contiguous(), ends = to.contiguous(),
               starts = checked_starts(document_starts, B, T, from.device(), "key_exits");
  require_on(from.device(), "key_exits", {{"to", to}});
  KeyExits out{empty({B, Hs, T + 1}, DType::i32, from.stream()), empty({B, Hs, T}, DType::i32, from.stream())};
  KeyExitArgs args;
  args.from_BHT = begins.data<std::int32_t>(), args.to_BHT = ends.data<std::int32_t>();
  if (starts.defined()) args.document_starts_BT = starts.data<std::int32_t>();
  args.B = B, args.H = Hs, args.T = T, args.window = window;
  args.first_BHT = out.first.data<std::int32_t>(), args.keys_BHT = out.keys.data<std::int32_t>();
  launch(from.stream(), args);
  return out;
}

Variable linear_attention(const Variable& qkv, const LinearShape& shape, const Tensor& document_starts,
                          const KeyExits& exits) {
  return record<LinearAttention>({qkv}, shape, document_starts, exits);
}

Variable gated_linear_attention(const Variable& qkv, const Variable& gates, const LinearShape& shape,
                                const Tensor& document_starts) {
  return record<GatedLinearAttention>({qkv, gates}, shape, document_starts);
}

Tensor linear_attention_extend(const Tensor& qkv, const LinearShape& shape, const KeyExits& exits, Tensor& state) {
  return extend(qkv, {}, shape, exits, state, LinearAttention::name);
}

Tensor gated_linear_attention_extend(const Tensor& qkv, const Tensor& gates, const LinearShape& shape, Tensor& state) {
  return extend(qkv, gates, shape, {}, state, GatedLinearAttention::name);
}

Variable silu_gate(const Variable& x, const Variable& gate) { return record<SiluGate>({x, gate}); }

Variable add_gated_heads(const Variable& base, const Variable& x, const Variable& gate) {
  return record<AddGatedHeads>({base, x, gate});
}

}  // namespace sieve
