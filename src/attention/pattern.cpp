// Letters: B batch, T time, H query heads, Hkv key-value heads, G = H / Hkv, D head size.
#include "attention/pattern.h"

#include <algorithm>
#include <cmath>
#include <typeinfo>

#include "attention/choose.h"
#include "attention/document_starts.h"
#include "attention/kernels/pattern_attention.h"
#include "attention/registry.h"
#include "attention/rotary.h"
#include "attention/spans.h"
#include "autograd/record.h"
#include "core/build.h"
#include "core/parallel_for.h"
#include "tensor/kernels/kernels.h"
#include "tensor/same_device.h"

namespace sieve {
namespace {

std::uint64_t bits_of(const void* context, std::int64_t b, std::int64_t head, std::int64_t query, std::int64_t first,
                      int count) {
  return seen_bits(*static_cast<const PairPattern*>(context), b, head, query, first, count);
}

// Blocks of one (row, head): what lies inside the document and before the query, but for what no query of the tile
// sees.
void append_tile(TilePlan& plan, const PairPattern& p, std::int64_t b, std::int64_t h, Interval queries) {
  constexpr auto size = static_cast<std::int32_t>(kKeyBlock);
  const auto begin = static_cast<std::int32_t>(p.start_of(b, queries.begin));
  for (std::int32_t at = begin; at < queries.end;) {
    const Interval block{at, spans::min(queries.end, spans::align_down(at, size) + size)};
    at = block.end;
    const std::uint64_t whole = ~std::uint64_t{0} >> (64 - block.size());
    std::uint64_t any = 0, all = whole;
    for (std::int32_t i = queries.begin; i < queries.end; ++i) {
      const std::uint64_t seen = seen_bits(p, b, h, i, block.begin, block.size());
      any |= seen, all &= seen;
    }
    if (any == 0) continue;
    plan.blocks.push_back(
        {block.begin, static_cast<std::uint8_t>(block.size()), 0, static_cast<std::uint8_t>(all != whole), 0});
  }
}

// Key and value heads repeated for each query head: (B, T, (H + 2 Hkv) D) -> (B, T, 3 H D).
Tensor repeat_heads(const Tensor& qkv, const AttentionSpec& spec) {
  const std::int64_t B = qkv.size(0), T = qkv.size(1), H = spec.n_heads, Hkv = spec.n_kv_heads, D = spec.head_dim;
  Tensor out = empty({B, T, 3 * H * D}, qkv.dtype(), qkv.stream());
  out.slice(2, 0, H * D).copy_from(qkv.slice(2, 0, H * D));
  for (std::int64_t h = 0; h < 2 * H; ++h) {
    const std::int64_t from = H + (h < H ? 0 : Hkv) + h % H / spec.group();
    out.slice(2, (H + h) * D, (H + h + 1) * D).copy_from(qkv.slice(2, from * D, (from + 1) * D));
  }
  return out;
}

// The way back: gradients of the repeated heads add up, in fp32 (fp64), head by head.
Tensor sum_heads(const Tensor& grad, const AttentionSpec& spec) {
  const std::int64_t B = grad.size(0), T = grad.size(1), H = spec.n_heads, Hkv = spec.n_kv_heads, D = spec.head_dim;
  const DType exact = compute_dtype(grad.dtype());
  Tensor out = empty({B, T, spec.qkv_features()}, grad.dtype(), grad.stream());
  out.slice(2, 0, H * D).copy_from(grad.slice(2, 0, H * D));
  for (std::int64_t x = 0; x < 2 * Hkv; ++x) {
    const std::int64_t first = H + (x < Hkv ? 0 : H) + x % Hkv * spec.group();
    Tensor sum = grad.slice(2, first * D, (first + 1) * D).to(exact).contiguous();
    for (std::int64_t g = 1; g < spec.group(); ++g) {
      const Tensor more = grad.slice(2, (first + g) * D, (first + g + 1) * D).to(exact).contiguous();
      AxpbyArgs add;
      add.x = more.raw(), add.y = sum.raw(), add.n = sum.numel(), add.alpha = add.beta = 1;
      add.x_dtype = add.y_dtype = exact;
      launch(grad.stream(), add);
    }
    out.slice(2, (H + x) * D, (H + x + 1) * D).copy_from(sum.to(grad.dtype()));
  }
  return out;
}

// How many heads see different keys: query heads, groups of them, or 1.
std::int64_t lists_of(const Tensor& choice, const AttentionSpec& spec) {
  return choice.defined() ? choice.size(1) : differs_by_head(spec) ? spec.n_heads : 1;
}

// A group's choice, dense, for each of its query heads: (B, Hc, T, n) -> (B, H, T, n).
Tensor repeat_choice(const Tensor& choice, std::int64_t heads) {
  const std::int64_t B = choice.size(0), Hc = choice.size(1), lists = choice.size(2) * choice.size(3);
  return choice.reshape({B, Hc, 1, lists})
      .expand({B, Hc, heads / Hc, lists})
      .contiguous()
      .reshape({B, heads, choice.size(2), choice.size(3)});
}

struct PatternAttention {
  static constexpr std::string_view name = "pattern_attention";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 1;
  Needs<1> need{};
  AttentionInputs in;   // as the engine sees it: its heads may be repeated ones
  AttentionSpec asked;  // as the caller sees it
  Tensor qkv, choice, out, statistics;

  bool repeats() const { return in.spec.n_kv_heads != asked.n_kv_heads; }

  Tensor forward(const std::array<Tensor, 1>& inputs, const Tensor& told, const AttentionInputs& how) {
    check_attention(how.spec, how.rope);
    in = how, asked = how.spec;
    qkv = inputs[0].contiguous();
    const std::int64_t B = qkv.size(0), T = qkv.size(1);
    in.document_starts = checked_starts(in.document_starts, B, T, qkv.device(), name);
    check_choice(told, asked, B, T, qkv.device(), name);
    const Tensor chosen = told.defined() ? told.contiguous() : Tensor();  // pattern_of() takes rows one behind another
    // Query heads that see different keys want keys of their own.
    if (lists_of(chosen, asked) > asked.n_kv_heads) {
      qkv = repeat_heads(qkv, asked);
      in.spec.n_kv_heads = in.spec.n_heads;
    }
    choice = !chosen.defined() ? choose(qkv, in) : repeats() ? repeat_choice(chosen, asked.n_heads) : chosen;
    out = empty({B, T, in.spec.n_heads * in.spec.head_dim}, qkv.dtype(), qkv.stream());
    if (need[0]) statistics = empty({B, in.spec.n_heads, T}, compute_dtype(qkv.dtype()), qkv.stream());
    if (qkv.device().is_cuda()) {
      run_on_gpu({}, {});
      return out;
    }
    run_engine([&](SoftmaxForwardArgs& args) {
      const Tensor workspace = empty({static_cast<std::int64_t>(cpu::workspace_bytes(args))}, DType::u8, qkv.stream());
      args.workspace = workspace.raw();
      launch(qkv.stream(), args);
    });
    return out;
  }

  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor dqkv = empty_like(qkv);
    if (qkv.device().is_cuda()) {
      const bool wide = reinterpret_cast<std::uintptr_t>(grad.raw()) % 16 == 0;  // as the kernels load it
      run_on_gpu(wide ? grad : grad.clone(), dqkv);
      return {repeats() ? sum_heads(dqkv, asked) : dqkv};
    }
    run_engine([&](const SoftmaxForwardArgs& forward) {
      SoftmaxBackwardArgs args;
      args.forward = forward, args.dout_BTHD = grad.raw(), args.dqkv_BTF = dqkv.raw();
      const Tensor workspace = empty({static_cast<std::int64_t>(cpu::workspace_bytes(args))}, DType::u8, qkv.stream());
      args.forward.workspace = workspace.raw();
      launch(qkv.stream(), args);
    });
    return {repeats() ? sum_heads(dqkv, asked) : dqkv};
  }

  // Everything but the plan, the results of backward and the workspace.
  SoftmaxForwardArgs softmax_args(const RotaryTable& rotary) const {
    SoftmaxForwardArgs args;
    args.qkv_BTF = qkv.raw(), args.out_BTHD = out.raw();
    args.statistics_BHT = statistics.defined() ? statistics.raw() : nullptr;
    args.B = qkv.size(0), args.T = qkv.size(1);
    args.H = in.spec.n_heads, args.Hkv = in.spec.n_kv_heads, args.D = in.spec.head_dim;
    args.scale = 1 / std::sqrt(static_cast<double>(args.D)), args.dtype = qkv.dtype();
    if (rotary.cos.defined()) args.rotary = {rotary.cos.raw(), rotary.sin.raw(), in.rope.rotary_dims, -1};
    return args;
  }
  RotaryTable rotary() const { return rotary_table(in.rope, qkv.size(1), compute_dtype(qkv.dtype()), qkv.stream()); }

  template <class F>
  void run_engine(F run) const {
    const std::int64_t B = qkv.size(0), T = qkv.size(1);
    const PairPattern pattern = pattern_of(in.spec, choice, in.document_starts, T);
    const TilePlan plan = make_pattern_plan(pattern, B, lists_of(choice, in.spec), T);
    const RotaryTable table = rotary();
    SoftmaxForwardArgs args = softmax_args(table);
    args.plan = plan.view(), args.plan.pair_bits = bits_of, args.plan.pair_context = &pattern;
    run(args);
  }

  // Forward where `grad` is undefined. Not by launch(): there is no CPU kernel to choose.
  void run_on_gpu([[maybe_unused]] const Tensor& grad, [[maybe_unused]] const Tensor& dqkv) const {
    if constexpr (build::with_cuda) {
      const RotaryTable table = rotary();
      PatternBackwardArgs args;
      args.forward.softmax = softmax_args(table);
      args.forward.pattern = pattern_of(in.spec, choice, in.document_starts, qkv.size(1));
      args.forward.pattern_heads = lists_of(choice, in.spec);
      const auto run = [&](const auto& pass) {
        const auto bytes = static_cast<std::int64_t>(cuda::workspace_bytes(pass, qkv.stream()));
        const Tensor workspace = empty({bytes}, DType::u8, qkv.stream());
        args.forward.softmax.workspace = workspace.raw();  // `pass` is args, or in it
        const KernelTimer timer(typeid(pass).name(), qkv.stream());
        cuda::run(pass, qkv.stream());
      };
      if (!grad.defined()) return run(args.forward);
      args.dout_BTHD = grad.raw(), args.dqkv_BTF = dqkv.raw();
      run(args);
    }
  }
};

}  // namespace

bool differs_by_head(const AttentionSpec& spec) {
  return spec.kind == AttentionKind::bigbird || spec.kind == AttentionKind::hash || spec.kind == AttentionKind::top_k ||
         spec.kind == AttentionKind::moba;
}

void check_choice(const Tensor& choice, const AttentionSpec& spec, std::int64_t B, std::int64_t T, const Device& device,
                  std::string_view op) {
  if (!choice.defined()) return;
  const bool buckets = spec.kind == AttentionKind::hash,
             blocks = spec.kind == AttentionKind::moba || spec.kind == AttentionKind::nsa;
  require(choice.dtype() == DType::i32 && choice.rank() == 4 && choice.size(0) == B && choice.size(2) == T &&
              (choice.size(1) == 1 || choice.size(1) == spec.n_kv_heads || choice.size(1) == spec.n_heads) &&
              (buckets ? choice.size(3) == 1 : choice.size(3) >= 1),
          op, "a choice ", choice.shape(), " of ", name_of(choice.dtype()), ": want i32 (", B, ", 1 or ",
          spec.n_kv_heads, " or ", spec.n_heads, ", ", T, buckets ? ", 1), the bucket of each position" : ", n), ",
          buckets  ? ""
          : blocks ? "n >= 1 blocks of the document that each query sees"
                   : "n >= 1 positions in the row that each query sees");
  require_on(device, op, {{"choice", choice}});
}

AttentionSpec sinks_as_pattern(const AttentionSpec& sliding_window) {
  AttentionSpec spec = sliding_window;
  spec.kind = AttentionKind::longformer, spec.sinks = 0;
  spec.pattern = {.dilation = 1, .globals = sliding_window.sinks};
  return spec;
}

bool pattern_takes_sinks(const AttentionSpec& spec, const Tensor& qkv) {
  return spec.kind == AttentionKind::sliding_window && spec.sinks > 0 && qkv.defined() && qkv.device().is_cuda() &&
         qkv.dtype() == DType::bf16 && (spec.head_dim == 64 || spec.head_dim == 128);
}

PairPattern pattern_of(const AttentionSpec& spec, const Tensor& choice, const Tensor& starts, std::int64_t T) {
  PairPattern p;
  p.kind = spec.kind, p.spec = spec.pattern, p.window = spec.window, p.T = T;
  if (starts.defined()) p.document_starts_BT = starts.data<std::int32_t>();
  if (choice.defined()) {
    p.choice_BHTN = choice.data<std::int32_t>();
    p.choice_heads = choice.size(1), p.choice_size = choice.size(3);
  }
  return p;
}

TilePlan make_pattern_plan(const PairPattern& pattern, std::int64_t B, std::int64_t heads, std::int64_t T) {
  TilePlan plan;
  plan.T = T;
  plan.tiles = (T + kQueryTile - 1) / kQueryTile;
  const bool by_row = pattern.document_starts_BT != nullptr || pattern.choice_BHTN != nullptr;
  plan.batch_plans = by_row ? B : 1, plan.head_plans = heads;
  plan.span_begin.assign(1, {}), plan.span_end.assign(1, {});
  for (std::int64_t x = 0; x < plan.batch_plans * T; ++x) {
    plan.span_begin[0].push_back(static_cast<std::int32_t>(pattern.start_of(x / T, x % T)));
    plan.span_end[0].push_back(static_cast<std::int32_t>(x % T + 1));
  }
  const std::int64_t parts = plan.batch_plans * heads * plan.tiles;
  std::vector<TilePlan> tiles(static_cast<std::size_t>(parts));
  parallel_for(parts, 8, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t x = first; x < last; ++x)
      append_tile(tiles[static_cast<std::size_t>(x)], pattern, x / plan.tiles / heads, x / plan.tiles % heads,
                  spans::tile_queries(x % plan.tiles, kQueryTile, T));
  });
  plan.tile_first.push_back(0);
  for (const TilePlan& tile : tiles) {
    plan.blocks.insert(plan.blocks.end(), tile.blocks.begin(), tile.blocks.end());
    plan.tile_first.push_back(static_cast<std::int64_t>(plan.blocks.size()));
  }
  return plan;
}

Variable pattern_attention(const Variable& qkv, const Tensor& choice, const AttentionInputs& in) {
  return record<PatternAttention>({qkv}, choice, in);
}

}  // namespace sieve
