// linear and embedding: the ops that read weight matrices. R rows of x, I features in, O features out, V vocabulary, C
// channels.
#include "autograd/ops.h"
#include "autograd/ops/args.h"
#include "autograd/record.h"

namespace sieve {
namespace {

struct Linear {
  static constexpr std::string_view name = "linear";
  static constexpr std::size_t arity = 3;
  Needs<3> need{};
  Tensor x, w;  // x for dW, w for dx
  std::int64_t R = 0, I = 0, O = 0;
  Shape x_shape;

  Tensor forward(const std::array<Tensor, 3>& in) {
    check(in[0], in[1], in[2]);
    const Tensor rows = in[0].contiguous(), weight = in[1].contiguous();
    const Tensor bias = in[2].defined() ? in[2].contiguous() : Tensor();
    if (need[1]) x = rows;
    if (need[0]) w = weight;
    Tensor y = empty(with_last(x_shape, O), rows.dtype(), rows.stream());
    multiply(rows, weight, y,
             {.bias_N = bias.defined() ? bias.raw() : nullptr, .M = R, .N = O, .K = I, .transpose_b = true});
    return y;
  }

  std::array<Tensor, 3> backward(const Tensor& grad, Needs<3>) {
    std::array<Tensor, 3> out;
    if (need[0]) {  // dx (R, I) = dy (R, O) W (O, I)
      out[0] = empty(x_shape, grad.dtype(), grad.stream());
      multiply(grad, w, out[0], {.M = R, .N = I, .K = O});
    }
    if (need[1]) {  // dW (O, I) = dy^T (O, R) x (R, I), in fp32 whatever the dtype of W
      out[1] = empty({O, I}, compute_dtype(grad.dtype()), grad.stream());
      multiply(grad, x, out[1], {.M = O, .N = I, .K = R, .transpose_a = true});
    }
    if (need[2]) out[2] = grad;  // the bias was broadcast over rows: the engine sums them
    return out;
  }

  void check(const Tensor& x_in, const Tensor& w_in, const Tensor& bias) {
    require_float(x_in, name);
    require_float(w_in, name);
    require_same_dtype(x_in, w_in, name);
    require(x_in.rank() >= 1 && w_in.rank() == 2 && x_in.size(-1) == w_in.size(1), name,
            "wants x (..., I) and w (O, I), got ", x_in.shape(), " and ", w_in.shape());
    x_shape = x_in.shape();
    R = rows_of(x_in);
    O = w_in.size(0);
    I = w_in.size(1);
    if (!bias.defined()) return;
    require_same_dtype(w_in, bias, name);
    require(bias.shape() == Shape{O}, name, "wants a bias of shape (", O, "), got ", bias.shape());
  }
};

struct Embedding {
  static constexpr std::string_view name = "embedding";
  static constexpr std::size_t arity = 1;
  Tensor ids;
  std::int64_t V = 0, C = 0;

  Tensor forward(const std::array<Tensor, 1>& in, const Tensor& which) {
    require_float(in[0], name);
    require_ids(which, name, "ids");
    require(in[0].rank() == 2, name, "wants w (V, C), got ", in[0].shape());
    require(which.rank() < kMaxRank, name, "ids of shape ", which.shape(), " leave no room for the channels");
    const Tensor w = in[0].contiguous();
    ids = which.contiguous();
    V = w.size(0);
    C = w.size(1);
    std::array<std::int64_t, kMaxRank> extents{};
    for (int i = 0; i < ids.rank(); ++i) extents[static_cast<std::size_t>(i)] = ids.size(i);
    extents[static_cast<std::size_t>(ids.rank())] = C;
    Tensor y = empty(Shape(std::span(extents.data(), static_cast<std::size_t>(ids.rank()) + 1)), w.dtype(), w.stream());
    launch(y.stream(), EmbeddingArgs{.w_VC = w.raw(),
                                     .ids_R = ids.data<std::int32_t>(),
                                     .y_RC = y.raw(),
                                     .R = ids.numel(),
                                     .V = V,
                                     .C = C,
                                     .dtype = w.dtype()});
    return y;
  }
  std::array<Tensor, 1> backward(const Tensor& grad, Needs<1>) {
    Tensor dw = empty({V, C}, compute_dtype(grad.dtype()), grad.stream());
    launch(grad.stream(), EmbeddingBackwardArgs{.dy_RC = grad.raw(),
                                                .ids_R = ids.data<std::int32_t>(),
                                                .dw_VC = dw.raw(),
                                                .R = ids.numel(),
                                                .V = V,
                                                .C = C,
                                                .dtype = grad.dtype()});
    return {dw};
  }
};

}  // namespace

Variable linear(const Variable& x, const Variable& w, const Variable& bias) { return record<Linear>({x, w, bias}); }
Variable embedding(const Variable& w, const Tensor& ids) { return record<Embedding>({w}, ids); }

}  // namespace sieve
