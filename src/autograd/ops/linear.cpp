// linear, linear_add and embedding: the ops that read weight matrices. R rows of x, I features in, O features out, V
// vocabulary, C channels.
#include "autograd/ops/linear.h"

#include "autograd/ops.h"
#include "autograd/ops/args.h"
#include "autograd/record.h"

namespace sieve {
namespace {

struct Linear {
  static constexpr std::string_view name = "linear";
  static constexpr std::size_t arity = 3;
  Needs<3> need{};
  LinearProduct product;

  Tensor forward(const std::array<Tensor, 3>& in) {
    return product.forward(name, {in[0], in[1], in[2], {}}, {need[0], need[1]});
  }
  std::array<Tensor, 3> backward(const Tensor& grad, Needs<3>) {
    auto [dx, dw, db] = product.backward(grad, need);
    return {dx, dw, db};
  }
};

struct LinearAdd {
  static constexpr std::string_view name = "linear_add";
  static constexpr std::size_t arity = 4;
  Needs<4> need{};
  LinearProduct product;

  Tensor forward(const std::array<Tensor, 4>& in) {
    require(in[3].defined(), name, "wants a residual");
    return product.forward(name, in, {need[0], need[1]});
  }
  std::array<Tensor, 4> backward(const Tensor& grad, Needs<4>) {
    auto [dx, dw, db] = product.backward(grad, {need[0], need[1], need[2]});
    return {dx, dw, db, need[3] ? grad : Tensor()};
  }
};

struct Embedding {
  static constexpr std::string_view name = "embedding";
  static constexpr std::size_t arity = 1;
  Tensor ids;
  std::int64_t V = 0, C = 0;

  Tensor forward(const std::array<Tensor, 1>& in, const Tensor& which) {
    require_float(in[0], name);
    require_ids(which, in[0].device(), name, "ids");
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
Variable linear_add(const Variable& x, const Variable& w, const Variable& bias, const Variable& residual) {
  return record<LinearAdd>({x, w, bias, residual});
}
Variable embedding(const Variable& w, const Tensor& ids) { return record<Embedding>({w}, ids); }

}  // namespace sieve
