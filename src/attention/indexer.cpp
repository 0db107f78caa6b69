#include "attention/indexer.h"

#include <algorithm>
#include <cmath>

#include "attention/choose.h"
#include "attention/document_starts.h"
#include "attention/kernels/choose.h"
#include "attention/kernels/index_loss.h"
#include "attention/registry.h"
#include "attention/rotate.h"
#include "autograd/record.h"
#include "core/build.h"
#include "tensor/same_device.h"

namespace sieve {
namespace {

// fp32 (fp64), but for rows that a GPU's tiles take as they are: their products are exact in fp32.
DType dtype_of_rows(const std::array<Tensor, 3>& in, const Tensor& q, const Tensor& k, const IndexLossArgs& args) {
  const bool half = in[0].dtype() == DType::bf16 && in[1].dtype() == DType::bf16 && q.dtype() == DType::bf16 &&
                    k.dtype() == DType::bf16;
  if constexpr (build::with_cuda) {
    if (half && q.device().is_cuda() && cuda::index_loss_by_tiles(args)) return DType::bf16;
  }
  return compute_dtype(q.dtype());
}

// Gradients are computed in forward, where the logits are, and scaled in backward.
struct KlOfIndex {
  static constexpr std::string_view name = "index_loss";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 3;
  Needs<3> need{};
  std::array<Tensor, 3> grads;

  Tensor forward(const std::array<Tensor, 3>& in, const Tensor& choice, const Tensor& q, const Tensor& k) {
    const DType exact = compute_dtype(q.dtype());
    const std::int64_t B = q.size(0), T = q.size(2);
    require(in[0].rank() == 4 && in[0].size(0) == B && in[0].size(2) == T &&
                in[1].shape() == Shape{B, 1, T, in[0].size(3)} && in[2].shape() == Shape{B, in[0].size(1), T} &&
                choice.rank() == 4 && choice.size(0) == B && choice.size(1) == 1 && choice.size(2) == T,
            name, "wants q (B, Hi, T, Di), k (B, 1, T, Di), weights (B, Hi, T), choice (B, 1, T, n) beside qkv of B ",
            B, ", T ", T, "; got ", in[0].shape(), ", ", in[1].shape(), ", ", in[2].shape(), ", ", choice.shape());
    IndexLossArgs args;
    args.B = B, args.T = T, args.Hi = in[0].size(1), args.Di = in[0].size(3);
    args.H = q.size(1), args.Hkv = k.size(1), args.D = q.size(3), args.M = choice.size(3);
    args.scale = 1 / std::sqrt(static_cast<double>(args.D)), args.dtype = dtype_of_rows(in, q, k, args);
    const auto dense = [&](const Tensor& t, DType dtype) {
      const Tensor rows = t.to(dtype).contiguous();
      return reinterpret_cast<std::uintptr_t>(rows.raw()) % 16 == 0 ? rows : rows.clone();  // for wide loads
    };
    const Tensor iq = dense(in[0], args.dtype), ik = dense(in[1], args.dtype), w = dense(in[2], exact),
                 qs = dense(q, args.dtype), ks = dense(k, args.dtype), chosen = choice.contiguous(),
                 losses = empty({B, T}, DType::f64, q.stream());
    args.index_q_BHTD = iq.raw(), args.index_k_BTD = ik.raw(), args.weights_BHT = w.raw();
    args.q_BHTD = qs.raw(), args.k_BHTD = ks.raw(), args.choice_BTM = chosen.data<std::int32_t>();
    args.loss_BT = losses.data<double>();
    if (need[0] || need[1] || need[2]) {
      grads = {empty(iq.shape(), exact, q.stream()), empty(ik.shape(), exact, q.stream()), empty_like(w)};
      args.dq_BHTD = grads[0].raw(), args.dk_BTD = grads[1].raw(), args.dweights_BHT = grads[2].raw();
    }
    Tensor workspace;
    if constexpr (build::with_cuda) {
      if (q.device().is_cuda()) {
        workspace = empty({static_cast<std::int64_t>(cuda::workspace_bytes(args, q.stream()))}, DType::u8, q.stream());
        args.workspace = workspace.raw();
      }
    }
    launch(q.stream(), args);
    return sum(Variable(losses)).value().to(exact);
  }
  std::array<Tensor, 3> backward(const Tensor& grad, Needs<3>) {
    std::array<Tensor, 3> out;
    for (std::size_t i = 0; i < 3; ++i)
      if (need[i]) out[i] = mul(Variable(grads[i]), Variable(grad)).value();
    return out;
  }
};

struct WithLoss {
  static constexpr std::string_view name = "with_loss";
  static constexpr std::span<const std::string_view> table = kAttentionOps;
  static constexpr std::size_t arity = 2;
  DType loss = DType::f32;

  Tensor forward(const std::array<Tensor, 2>& in) {
    require(in[1].numel() == 1, name, "wants a loss of one element, got ", in[1].shape());
    loss = in[1].dtype();
    return in[0];
  }
  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2> need) {
    return {need[0] ? grad : Tensor(), need[1] ? full({}, 1, loss, grad.stream()) : Tensor()};
  }
};

}  // namespace

Tensor index_choice(const IndexInputs& in, std::int64_t k, const Tensor& document_starts) {
  const Tensor &q = in.q.value(), &keys = in.k.value();
  if (k < 1) fail(Exit::config, "attention", "k ", k, " must be at least 1 for type dsa");
  const std::int64_t B = q.size(0), N = q.size(2), T = keys.size(2);
  const DType exact = compute_dtype(q.dtype());
  const Tensor starts = checked_starts(document_starts, B, T, q.device(), "dsa"),
               weights = in.weights.value().contiguous();
  require(keys.shape() == Shape{B, 1, T, q.size(3)} && weights.shape() == Shape{B, q.size(1), N} &&
              weights.dtype() == exact && N <= T,
          "dsa", "wants q (B, Hi, N, Di), k (B, 1, T, Di), weights ", name_of(exact), " (B, Hi, N); got ", q.shape(),
          ", ", keys.shape(), ", ", name_of(weights.dtype()), " ", weights.shape());
  require_on(q.device(), "dsa", {{"k", keys}, {"weights", weights}});
  const DType dtype = choice_dtype(q);
  const Tensor x = q.contiguous().to(dtype), y = keys.contiguous().to(dtype);
  Tensor out = empty({B, 1, N, k}, DType::i32, q.stream());
  ChooseArgs args;
  args.q_BHND = x.raw(), args.k_BHTD = y.raw(), args.k_stride = T * q.size(3), args.weights_BHN = weights.raw();
  if (starts.defined()) args.document_starts_BT = starts.data<std::int32_t>();
  args.B = B, args.H = q.size(1), args.Hk = 1, args.N = N, args.T = T, args.D = q.size(3);
  args.size = k, args.dtype = dtype, args.choice_BHNM = out.data<std::int32_t>();
  launch(q.stream(), args);
  return out;
}

Variable index_loss(const IndexInputs& in, const Tensor& choice, const Tensor& qkv, const AttentionInputs& attention) {
  const AttentionSpec& s = attention.spec;
  const std::int64_t HD = s.n_heads * s.head_dim, kvD = s.n_kv_heads * s.head_dim;
  require(qkv.rank() == 3 && qkv.size(2) == s.qkv_features(), "index_loss", "wants qkv (B, T, ", s.qkv_features(),
          "), got ", qkv.shape());
  require_on(qkv.device(), "index_loss",
             {{"q", in.q.value()}, {"k", in.k.value()}, {"weights", in.weights.value()}, {"choice", choice}});
  const Variable q = rotate_heads(Variable(qkv.slice(2, 0, HD)), s.n_heads, attention.rope);
  const Variable k = rotate_heads(Variable(qkv.slice(2, HD, HD + kvD)), s.n_kv_heads, attention.rope);
  return record<KlOfIndex>({in.q, in.k, in.weights}, choice, q.value(), k.value());
}

Variable with_loss(const Variable& x, const Variable& loss) { return record<WithLoss>({x, loss}); }

}  // namespace sieve
