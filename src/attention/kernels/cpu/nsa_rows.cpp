// Rows of compressed keys, and the gated sum of branches. Letters as in kernels/nsa.h.
#include <cmath>
#include <vector>

#include "attention/kernels/cpu/nsa_tile.h"
#include "attention/kernels/cpu/rows.h"
#include "core/parallel_for.h"

namespace sieve::cpu {
namespace {

const char* element(const void* x, std::int64_t index, DType dtype) {
  return static_cast<const char*>(x) + index * static_cast<std::int64_t>(size_of(dtype));
}
char* element(void* x, std::int64_t index, DType dtype) {
  return static_cast<char*>(x) + index * static_cast<std::int64_t>(size_of(dtype));
}

template <class Real>
void compress_rows(const CompressRowsArgs& a) {
  const std::int64_t M = a.grid.M(), l = a.grid.l, D = a.D;
  std::vector<Real> positions(static_cast<std::size_t>(l * D));
  convert_row(a.positions_LD, a.dtype, l * D, positions.data());
  const std::vector<std::vector<std::int64_t>> firsts = first_positions(a.grid);
  parallel_for(a.grid.B * a.H * M, 8, [&](std::int64_t begin, std::int64_t end) {
    std::vector<Real> row(static_cast<std::size_t>(D));
    for (std::int64_t y = begin; y < end; ++y) {
      const std::int64_t m = y % M, h = y / M % a.H, b = y / M / a.H;
      const std::vector<std::int64_t>& first = firsts[static_cast<std::size_t>(b)];
      const bool real = m < static_cast<std::int64_t>(first.size());
      for (std::int64_t x = 0; x < l; ++x) {
        if (real) {
          const std::int64_t t = first[static_cast<std::size_t>(m)] + x;
          convert_row(element(a.x_BTF, ((b * a.grid.T + t) * a.H + h) * D, a.dtype), a.dtype, D, row.data());
          for (std::int64_t d = 0; d < D; ++d) row[static_cast<std::size_t>(d)] += positions[at(x * D + d)];
        } else {
          row.assign(row.size(), Real(0));
        }
        store_row(row.data(), D, element(a.out_BHML, (y * l + x) * D, a.dtype), a.dtype);
      }
    }
  });
}

// dx of a position gathers from the compressed keys that hold it, in their order.
template <class Real>
void compress_rows_dx(const CompressRowsBackwardArgs& b, const std::vector<std::vector<std::int64_t>>& firsts) {
  const CompressRowsArgs& a = b.forward;
  const std::int64_t M = a.grid.M(), l = a.grid.l, D = a.D, T = a.grid.T;
  parallel_for(a.grid.B * a.H, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<Real> sums(at(T * D)), row(at(D));
    for (std::int64_t y = begin; y < end; ++y) {
      sums.assign(sums.size(), Real(0));
      const std::int64_t batch = y / a.H, h = y % a.H;
      const std::vector<std::int64_t>& first = firsts[at(batch)];
      for (std::size_t m = 0; m < first.size(); ++m) {
        for (std::int64_t x = 0; x < l; ++x) {
          const std::int64_t from = ((y * M + static_cast<std::int64_t>(m)) * l + x) * D;
          convert_row(element(b.grad_BHML, from, a.dtype), a.dtype, D, row.data());
          for (std::int64_t d = 0; d < D; ++d) sums[at((first[m] + x) * D + d)] += row[at(d)];
        }
      }
      for (std::int64_t t = 0; t < T; ++t)
        store_row(sums.data() + t * D, D, element(b.dx_BTF, ((batch * T + t) * a.H + h) * D, a.dtype), a.dtype);
    }
  });
}

template <class Real>
void compress_rows_dpositions(const CompressRowsBackwardArgs& b, const std::vector<std::vector<std::int64_t>>& firsts) {
  const CompressRowsArgs& a = b.forward;
  const std::int64_t M = a.grid.M(), l = a.grid.l, D = a.D;
  parallel_for(l, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> sums(at(D));
    std::vector<Real> row(at(D));
    for (std::int64_t x = begin; x < end; ++x) {
      sums.assign(sums.size(), 0.0);
      for (std::int64_t y = 0; y < a.grid.B * a.H; ++y) {
        const auto count = static_cast<std::int64_t>(firsts[at(y / a.H)].size());
        for (std::int64_t m = 0; m < count; ++m) {
          convert_row(element(b.grad_BHML, ((y * M + m) * l + x) * D, a.dtype), a.dtype, D, row.data());
          for (std::size_t d = 0; d < row.size(); ++d) sums[d] += static_cast<double>(row[d]);
        }
      }
      for (std::int64_t d = 0; d < D; ++d)
        static_cast<Real*>(b.dpositions_LD)[x * D + d] = static_cast<Real>(sums[at(d)]);
    }
  });
}

template <class Real>
Real sigmoid(Real x) {
  return Real(1) / (Real(1) + std::exp(-x));
}

template <class Real>
void gate_branches(const GateBranchesArgs& a) {
  const std::int64_t D = a.D;
  parallel_for(a.R, 16, [&](std::int64_t begin, std::int64_t end) {
    std::vector<Real> gates(at(3 * a.H)), x(at(D)), sum(at(D));
    for (std::int64_t r = begin; r < end; ++r) {
      convert_row(element(a.gates_RCH, r * 3 * a.H, a.dtype), a.dtype, 3 * a.H, gates.data());
      for (std::int64_t h = 0; h < a.H; ++h) {
        const std::int64_t head = (r * a.H + h) * D;
        sum.assign(sum.size(), Real(0));
        for (std::int64_t c = 0; c < 3; ++c) {
          const Real gate = sigmoid(gates[at(c * a.H + h)]);
          convert_row(element(a.x_RF[c], head, a.dtype), a.dtype, D, x.data());
          for (std::size_t d = 0; d < x.size(); ++d) sum[d] += gate * x[d];
        }
        store_row(sum.data(), D, element(a.out_RF, head, a.dtype), a.dtype);
      }
    }
  });
}

template <class Real>
void gate_branches_backward(const GateBranchesBackwardArgs& b) {
  const GateBranchesArgs& a = b.forward;
  const std::int64_t D = a.D;
  parallel_for(a.R, 16, [&](std::int64_t begin, std::int64_t end) {
    std::vector<Real> gates(at(3 * a.H)), dgates(at(3 * a.H)), x(at(D)), dy(at(D));
    for (std::int64_t r = begin; r < end; ++r) {
      convert_row(element(a.gates_RCH, r * 3 * a.H, a.dtype), a.dtype, 3 * a.H, gates.data());
      for (std::int64_t h = 0; h < a.H; ++h) {
        const std::int64_t head = (r * a.H + h) * D;
        convert_row(element(b.dout_RF, head, a.dtype), a.dtype, D, dy.data());
        for (std::int64_t c = 0; c < 3; ++c) {
          const Real gate = sigmoid(gates[at(c * a.H + h)]);
          convert_row(element(a.x_RF[c], head, a.dtype), a.dtype, D, x.data());
          Real along = 0;
          for (std::size_t d = 0; d < x.size(); ++d) along += dy[d] * x[d], x[d] = gate * dy[d];
          store_row(x.data(), D, element(b.dx_RF[c], head, a.dtype), a.dtype);
          dgates[at(c * a.H + h)] = gate * (Real(1) - gate) * along;
        }
      }
      store_row(dgates.data(), 3 * a.H, element(b.dgates_RCH, r * 3 * a.H, a.dtype), a.dtype);
    }
  });
}

}  // namespace

void run(const CompressRowsArgs& a) {
  if (a.dtype == DType::f64) compress_rows<double>(a);
  else compress_rows<float>(a);
}
void run(const CompressRowsBackwardArgs& b) {
  const std::vector<std::vector<std::int64_t>> firsts = first_positions(b.forward.grid);
  const bool wide = b.forward.dtype == DType::f64;
  if (wide) compress_rows_dx<double>(b, firsts);
  else compress_rows_dx<float>(b, firsts);
  if (b.dpositions_LD == nullptr) return;
  if (wide) compress_rows_dpositions<double>(b, firsts);
  else compress_rows_dpositions<float>(b, firsts);
}
void run(const GateBranchesArgs& a) {
  if (a.dtype == DType::f64) gate_branches<double>(a);
  else gate_branches<float>(a);
}
void run(const GateBranchesBackwardArgs& b) {
  if (b.forward.dtype == DType::f64) gate_branches_backward<double>(b);
  else gate_branches_backward<float>(b);
}

}  // namespace sieve::cpu
