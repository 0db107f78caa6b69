// Letters: B batch, T time, H query heads, Hkv key-value heads, Hs score heads, D head size, F features of qkv.
#include "attention/attention.h"

#include <cmath>
#include <mutex>

#include "attention/dense.h"
#include "attention/device_plan.h"
#include "attention/document_starts.h"
#include "attention/kernels/select.h"
#include "attention/kernels/softmax.h"
#include "attention/pattern.h"
#include "attention/plan.h"
#include "attention/registry.h"
#include "attention/rotary.h"
#include "attention/sparsek.h"
#include "attention/warpgroup_engine.h"
#include "autograd/mode.h"
#include "autograd/record.h"
#include "core/log.h"
#include "tensor/dispatch.h"

namespace sieve {
namespace {

template <class... Parts>
void demand(bool condition, const Parts&... parts) {
  if (!condition) fail(Exit::config, "attention", parts...);
}

// What the selection of a SparseK layer leaves behind, (B, Hs, T) each. Without thresholds only from and to are
// defined.
struct Selection {
  Tensor from, to;                  // i32
  Tensor z, tau;                    // f64
  Tensor band, band_from, band_to;  // i32
  Tensor nan_scores;                // i64, one: how many; on the scores' device

  bool thresholds() const { return z.defined(); }
};

const std::int32_t* starts_of(const Tensor& document_starts) {
  return document_starts.defined() ? document_starts.data<std::int32_t>() : nullptr;
}

// Statistics are computed on the host; a GPU's selection is copied there, which waits for it.
SelectionStats statistics_of(SelectArgs args, const Tensor& scores, const Tensor& starts, const Selection& selection) {
  const Stream host;
  const Tensor s = scores.to(host), d = starts.defined() ? starts.to(host) : Tensor(), from = selection.from.to(host),
               to = selection.to.to(host), band = selection.band.to(host), band_from = selection.band_from.to(host);
  args.scores_BHT = s.raw(), args.document_starts_BT = starts_of(d);
  args.from_BHT = from.data<std::int32_t>(), args.to_BHT = to.data<std::int32_t>();
  args.band_BHT = band.data<std::int32_t>(), args.band_from_BHT = band_from.data<std::int32_t>();
  return selection_stats(args);
}

Selection select_keys(const AttentionSpec& spec, const Tensor& scores, const Tensor& starts, bool thresholds,
                      SelectionStats* stats) {
  const SparsekSpec& s = spec.sparsek;
  Selection out;
  auto make = [&](DType dtype) { return empty(scores.shape(), dtype, scores.stream()); };
  out.from = make(DType::i32);
  out.to = make(DType::i32);
  if (thresholds) {
    out.z = make(DType::f64);
    out.tau = make(DType::f64);
    for (Tensor* t : {&out.band, &out.band_from, &out.band_to}) *t = make(DType::i32);
  }
  out.nan_scores = empty({1}, DType::i64, scores.stream());
  auto ints = [](const Tensor& t) { return t.defined() ? t.data<std::int32_t>() : nullptr; };
  auto reals = [](const Tensor& t) { return t.defined() ? t.data<double>() : nullptr; };
  const SelectArgs args{.scores_BHT = scores.raw(),
                        .document_starts_BT = starts_of(starts),
                        .dtype = scores.dtype(),
                        .B = scores.size(0),
                        .H = scores.size(1),
                        .T = scores.size(2),
                        .k = s.k,
                        .pool = s.pool,
                        .delay = candidate_delay(spec),
                        .slope = s.slope,
                        .temperature = s.temperature,
                        .thresholds = thresholds,
                        .from_BHT = ints(out.from),
                        .to_BHT = ints(out.to),
                        .z_BHT = reals(out.z),
                        .tau_BHT = reals(out.tau),
                        .band_BHT = ints(out.band),
                        .band_from_BHT = ints(out.band_from),
                        .band_to_BHT = ints(out.band_to),
                        .nan_count = out.nan_scores.data<std::int64_t>()};
  launch(scores.stream(), args);
  if (stats != nullptr) *stats = statistics_of(args, scores, starts, out);
  return out;
}

// What a pass visits, on the host or on a GPU.
struct Plan {
  TilePlan host;
  PlanOnDevice device;
};

Plan plan_of(const AttentionSpec& spec, const RopeSpec& rope, const Tensor& qkv, const Tensor& starts,
             const Selection& selection) {
  const std::int64_t B = qkv.size(0), T = qkv.size(1);
  if (qkv.device().is_cuda()) {
    const bool warpgroups = warpgroup_engine(spec, rope, qkv);
    if (!warpgroups && spec.kind == AttentionKind::sparsek) {
      static std::once_flag said;
      std::call_once(said, [] {
        log_info("SparseK by the general kernels, three to four times slower than those for Hopper GPUs, which want ",
                 "device.precision=bf16, head_dim 64 or 128 and selected keys at their own positions (docs/gpu.md)");
      });
    }
    Plan plan{{},
              make_device_plan(spec, B, T, starts, selection.from, selection.to, selection.band_from, qkv.stream(),
                               warpgroups ? warpgroup_tile_queries(spec.head_dim) : kQueryTile,
                               warpgroups ? warpgroup_chunk_queries(T) : kRowListQueries)};
    plan.device.view.warpgroups = warpgroups;
    return plan;
  }
  SelectedKeys keys;
  if (selection.from.defined()) {
    keys.from = selection.from.data<std::int32_t>();
    keys.to = selection.to.data<std::int32_t>();
    keys.heads = selection.from.size(1);
  }
  if (selection.thresholds()) {
    keys.band_from = selection.band_from.data<std::int32_t>();
    keys.band_to = selection.band_to.data<std::int32_t>();
  }
  return {make_plan(spec, B, T, starts_of(starts), keys), {}};
}

GateView gate_of(const AttentionSpec& spec, const Selection& selection) {
  GateView gate;
  gate.mode = spec.sparsek.gate;
  if (!selection.thresholds()) return gate;
  gate.heads = selection.z.size(1);
  gate.z = selection.z.data<double>();
  gate.tau = selection.tau.data<double>();
  gate.band_from = selection.band_from.data<std::int32_t>();
  gate.band_to = selection.band_to.data<std::int32_t>();
  return gate;
}

// positions = none is clamp at distance 0: every selected key is farther, and a rotation by 0 is none.
std::int64_t far_distance(const AttentionSpec& spec, const RopeSpec& rope, std::int64_t T) {
  if (spec.kind != AttentionKind::sparsek || rope.rotary_dims == 0) return -1;
  switch (spec.sparsek.positions) {
    case PositionRule::absolute: return -1;
    case PositionRule::none: return 0;
    case PositionRule::clamp: return spec.sparsek.clamp_distance < T ? spec.sparsek.clamp_distance : -1;
  }
  return -1;
}

// Everything of the engine's arguments but the results. The tables and the plan must outlive it.
SoftmaxForwardArgs engine_args(const AttentionInputs& in, const Tensor& qkv, const Plan& plan,
                               const Selection& selection, const RotaryTable& rotary) {
  SoftmaxForwardArgs args;
  args.qkv_BTF = qkv.raw();
  args.B = qkv.size(0);
  args.T = qkv.size(1);
  args.H = in.spec.n_heads;
  args.Hkv = in.spec.n_kv_heads;
  args.D = in.spec.head_dim;
  args.scale = 1 / std::sqrt(static_cast<double>(in.spec.head_dim));
  args.dtype = qkv.dtype();
  args.plan = plan.host.view();
  args.device_plan = plan.device.view;
  args.gate = gate_of(in.spec, selection);
  if (rotary.cos.defined()) {
    args.rotary = {rotary.cos.raw(), rotary.sin.raw(), in.rope.rotary_dims, far_distance(in.spec, in.rope, args.T)};
  }
  return args;
}

// From the allocator that keeps freed blocks: fresh pages every step would cost more than the zeroing.
template <class Args>
Tensor workspace_for(const Stream& stream, const Args& args) {
  std::size_t bytes = 0;
  if (stream.device.is_cuda()) {
    if constexpr (build::with_cuda) bytes = workspace_bytes(args, stream);
  } else {
    bytes = workspace_bytes(args);
  }
  return empty({static_cast<std::int64_t>(bytes)}, DType::u8, stream);
}

void check_inputs(const AttentionInputs& in, const Tensor& qkv, const Tensor& scores) {
  check_attention(in.spec, in.rope);
  require(qkv.defined() && qkv.rank() == 3 && qkv.size(2) == in.spec.qkv_features() && is_float(qkv.dtype()),
          "attention", "wants qkv (B, T, ", in.spec.qkv_features(), "), got ",
          qkv.defined() ? qkv.shape().str() : "nothing");
  const std::int64_t B = qkv.size(0), T = qkv.size(1);
  require(T < (std::int64_t{1} << 31), "attention", "T = ", T, " exceeds 2^31 - 1");
  const bool wants_scores = in.spec.kind == AttentionKind::sparsek;
  require(wants_scores == scores.defined(), "attention",
          wants_scores ? "sparsek wants scores" : "only sparsek takes scores");
  if (wants_scores) {
    const std::int64_t Hs = scores.rank() == 3 ? scores.size(1) : 0;
    require((Hs == 1 || Hs == in.spec.n_kv_heads) && scores.shape() == Shape{B, Hs, T} && is_float(scores.dtype()) &&
                scores.dtype() != DType::bf16,
            "attention", "wants scores f32 or f64 (", B, ", 1 or ", in.spec.n_kv_heads, ", ", T, "), got ",
            name_of(scores.dtype()), " ", scores.shape());
  }
}

struct Attention {
  static constexpr std::string_view name = "attention";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 2;
  Needs<2> need{};
  AttentionInputs in;
  Tensor qkv, out, statistics;
  Selection selection;
  PlanOnDevice kept;  // forward's, for backward; on the CPU it is as quickly made as read
  DType score_dtype = DType::f32;
  bool dense = false;  // by attention/dense.h, forward and backward

  Tensor forward(const std::array<Tensor, 2>& inputs, const AttentionInputs& how, SelectionStats* stats,
                 SelectionLives* lives) {
    check_inputs(how, inputs[0], inputs[1]);
    in = how;
    qkv = inputs[0].contiguous();
    const std::int64_t B = qkv.size(0), T = qkv.size(1);
    in.document_starts = checked_starts(in.document_starts, B, T, qkv.device(), name);
    const bool saves = need[0] || need[1];
    dense = dense_path(in.spec, in.rope, qkv, in.document_starts.defined(), saves);
    if (dense) return out = dense_forward(in.spec, in.rope, qkv, saves ? &statistics : nullptr);
    out = empty({B, T, in.spec.n_heads * in.spec.head_dim}, qkv.dtype(), qkv.stream());
    if (inputs[1].defined()) {
      score_dtype = inputs[1].dtype();
      const bool thresholds = in.spec.sparsek.gate != GateMode::hard || need[1] || stats != nullptr;
      selection = select_keys(in.spec, inputs[1].contiguous(), in.document_starts, thresholds, stats);
      const bool runs_again = grad_mode().kind == GradMode::Kind::note;  // recorded then: a step that may be skipped
      if (!saves && !runs_again) check_scores(inputs[1].numel());
      if (lives != nullptr) *lives = {selection.from, selection.to};
    }
    const Plan plan = plan_of(in.spec, in.rope, qkv, in.document_starts, selection);
    if (saves) kept = plan.device;
    const RotaryTable rotary = tables();
    SoftmaxForwardArgs args = engine_args(in, qkv, plan, selection, rotary);
    args.out_BTHD = out.raw();
    if (saves) {
      statistics = empty({B, in.spec.n_heads, T}, compute_dtype(qkv.dtype()), qkv.stream());
      args.statistics_BHT = statistics.raw();
    }
    const Tensor workspace = workspace_for(qkv.stream(), args);
    args.workspace = workspace.raw();
    launch(qkv.stream(), args);
    if (selection.nan_scores.defined()) {  // the loss must show it, so that the step can be skipped
      launch(qkv.stream(), PoisonArgs{.nan_count = selection.nan_scores.data<std::int64_t>(),
                                      .out = out.raw(),
                                      .n = out.numel(),
                                      .dtype = out.dtype()});
    }
    return out;
  }

  // Where nothing is recorded (evaluation, generation) a GPU is waited for.
  void check_scores(std::int64_t scores) const {
    const auto nan = static_cast<std::int64_t>(selection.nan_scores.item());
    if (nan == 0) return;
    fail(Exit::nonfinite, name, nan, " of ", scores,
         " scores are NaN: the scorer's weights or its inputs are not finite");
  }

  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2>) {
    if (dense) return {dense_backward(in.spec, in.rope, qkv, out, statistics, grad), Tensor()};
    const Plan plan =
        qkv.device().is_cuda() ? Plan{{}, kept} : plan_of(in.spec, in.rope, qkv, in.document_starts, selection);
    const RotaryTable rotary = tables();
    Tensor dqkv = empty_like(qkv);
    const Tensor dout = reinterpret_cast<std::uintptr_t>(grad.raw()) % 16 == 0 ? grad : grad.clone();  // for wide loads
    SoftmaxBackwardArgs args;
    args.forward = engine_args(in, qkv, plan, selection, rotary);
    args.forward.out_BTHD = out.raw();
    args.forward.statistics_BHT = statistics.raw();
    args.dout_BTHD = dout.raw();
    args.dqkv_BTF = dqkv.raw();
    Tensor column, row;
    if (need[1]) {
      column = empty(selection.z.shape(), DType::f64, qkv.stream());
      row = empty_like(column);
      args.column_BHT = column.data<double>();
      args.row_BHT = row.data<double>();
    }
    const Tensor workspace = workspace_for(qkv.stream(), args);
    args.forward.workspace = workspace.raw();
    launch(qkv.stream(), args);
    return {need[0] ? dqkv : Tensor(), need[1] ? score_gradient(column, row) : Tensor()};
  }

  Tensor score_gradient(const Tensor& column, const Tensor& row) const {
    Tensor dscores = empty(column.shape(), score_dtype, column.stream());
    const SelectBackwardArgs args{.column_BHT = column.data<double>(),
                                  .row_BHT = row.data<double>(),
                                  .band_BHT = selection.band.data<std::int32_t>(),
                                  .band_from_BHT = selection.band_from.data<std::int32_t>(),
                                  .band_to_BHT = selection.band_to.data<std::int32_t>(),
                                  .document_starts_BT = starts_of(in.document_starts),
                                  .dscores_BHT = dscores.raw(),
                                  .dtype = score_dtype,
                                  .B = column.size(0),
                                  .H = column.size(1),
                                  .T = column.size(2),
                                  .temperature = in.spec.sparsek.temperature};
    launch(column.stream(), args);
    return dscores;
  }

  RotaryTable tables() const {
    const std::int64_t T = qkv.size(1);  // far_distance < T
    return rotary_table(in.rope, T, compute_dtype(qkv.dtype()), qkv.stream());
  }
};

}  // namespace

void check_attention(const AttentionSpec& spec, const RopeSpec& rope) {
  demand(spec.n_heads >= 1 && spec.n_kv_heads >= 1 && spec.head_dim >= 1, "n_heads ", spec.n_heads, ", n_kv_heads ",
         spec.n_kv_heads, " and head_dim ", spec.head_dim, " must be at least 1");
  demand(spec.n_heads % spec.n_kv_heads == 0, "n_heads ", spec.n_heads, " is not a multiple of n_kv_heads ",
         spec.n_kv_heads, ": every key-value head serves the same number of query heads");
  if (spec.kind == AttentionKind::sliding_window || spec.kind == AttentionKind::sparsek) {
    demand(spec.window >= 1, "window ", spec.window, " must be at least 1: it counts the query's own position");
    demand(spec.sinks >= 0, "sinks ", spec.sinks, " must not be negative");
  }
  if (spec.kind == AttentionKind::sparsek) {
    const SparsekSpec& s = spec.sparsek;
    demand(s.k >= 1, "sparsek k ", s.k, " must be at least 1");
    demand(s.pool >= 0, "sparsek pool ", s.pool, " must not be negative (0: all scores)");
    demand(s.pool != 1 || s.gate == GateMode::hard, "sparsek pool 1 leaves every weight at 1 and no score a gradient",
           ": take 2 or more, 0 for all scores, or the hard gate");
    demand(std::isfinite(s.slope), "sparsek slope ", s.slope, " must be finite");
    demand(std::isfinite(s.temperature) && s.temperature > 0, "sparsek temperature ", s.temperature,
           " must be positive and finite");
    demand(s.positions != PositionRule::clamp || s.clamp_distance >= 1, "sparsek clamp_distance ", s.clamp_distance,
           " must be at least 1 with positions: clamp");
  }
  demand(rope.rotary_dims >= 0 && rope.rotary_dims % 2 == 0 && rope.rotary_dims <= spec.head_dim, "rotary_dims ",
         rope.rotary_dims, " must be even and at most head_dim ", spec.head_dim);
  demand(rope.rotary_dims == 0 || (std::isfinite(rope.theta) && rope.theta > 0), "rope theta ", rope.theta,
         " must be positive and finite");
}

Variable attention(const Variable& qkv, const Variable& scores, const AttentionInputs& in, SelectionStats* stats,
                   SelectionLives* lives) {
  if (shows_pairs(in.spec.kind)) return pattern_attention(qkv, {}, in);
  if (pattern_takes_sinks(in.spec, qkv.value())) {
    check_inputs(in, qkv.value(), scores.value());
    AttentionInputs pattern = in;
    pattern.spec = sinks_as_pattern(in.spec);
    return pattern_attention(qkv, {}, pattern);
  }
  return record<Attention>({qkv, scores}, in, stats, lives);
}

}  // namespace sieve
