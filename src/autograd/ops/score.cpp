// score: the product of the SparseK scoring network, kept in fp32 from here on. B batch, T time, C channels, H score
// heads.
#include "autograd/ops.h"
#include "autograd/ops/args.h"
#include "autograd/record.h"

namespace sieve {
namespace {

struct Score {
  static constexpr std::string_view name = "score";
  static constexpr std::size_t arity = 2;
  Tensor x, w;

  Tensor forward(const std::array<Tensor, 2>& in) {
    require_float(in[0], name);
    require_float(in[1], name);
    require(in[1].dtype() == in[0].dtype() || in[1].dtype() == compute_dtype(in[0].dtype()), name,
            "dtypes differ: ", name_of(in[0].dtype()), " x and ", name_of(in[1].dtype()), " w");
    require(in[0].rank() == 3 && in[1].rank() == 2 && in[0].size(2) == in[1].size(1), name,
            "wants x (B, T, C) and w (Hs, C), got ", in[0].shape(), " and ", in[1].shape());
    x = in[0].contiguous();
    w = in[1].contiguous().to(compute_dtype(x.dtype()));
    Tensor s = empty({x.size(0), w.size(0), x.size(1)}, compute_dtype(x.dtype()), x.stream());
    launch(s.stream(), ScoreArgs{.x_BTC = x.raw(),
                                 .w_HC = w.raw(),
                                 .s_BHT = s.raw(),
                                 .B = x.size(0),
                                 .T = x.size(1),
                                 .C = x.size(2),
                                 .H = w.size(0),
                                 .dtype = x.dtype()});
    return s;
  }
  std::array<Tensor, 2> backward(const Tensor& grad, Needs<2> need) {
    std::array<Tensor, 2> out;
    if (need[0]) out[0] = empty(x.shape(), x.dtype(), x.stream());
    if (need[1]) out[1] = empty(w.shape(), compute_dtype(w.dtype()), w.stream());
    launch(grad.stream(), ScoreBackwardArgs{.ds_BHT = grad.raw(),
                                            .x_BTC = x.raw(),
                                            .w_HC = w.raw(),
                                            .dx_BTC = need[0] ? out[0].raw() : nullptr,
                                            .dw_HC = need[1] ? out[1].raw() : nullptr,
                                            .B = x.size(0),
                                            .T = x.size(1),
                                            .C = x.size(2),
                                            .H = w.size(0),
                                            .dtype = x.dtype()});
    return out;
  }
};

}  // namespace

Variable score(const Variable& x, const Variable& w) { return record<Score>({x, w}); }

}  // namespace sieve
