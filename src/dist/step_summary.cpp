#include "dist/step_summary.h"

#include <bit>
#include <cmath>
#include <vector>

#include "dist/communicator.h"
#include "dist/tree.h"

namespace sieve {
namespace {

enum Column { kLoss, kTokens, kNorm, kFlags, kColumns };
enum Flag : int { kStop = 1, kInterrupt = 2, kNonfinite = 4, kError = 8 };

int bits_of(const StepFlags& f) {
  return (f.stop ? kStop : 0) | (f.interrupt ? kInterrupt : 0) | (f.nonfinite ? kNonfinite : 0) |
         (f.error ? kError : 0);
}

}  // namespace

StepSummary reduce_step_summary(Communicator& comm, const StepSummary& mine) {
  require(mine.tokens >= 0 && mine.tokens < (std::int64_t{1} << 53), "step summary", mine.tokens, " tokens");
  Tensor row = empty({kColumns}, DType::f64);
  double* r = row.data<double>();
  r[kLoss] = mine.loss_sum;
  r[kTokens] = static_cast<double>(mine.tokens);
  r[kNorm] = mine.squared_norm;
  r[kFlags] = bits_of(mine.flags);
  const Tensor rows = comm.all_gather(row, "step summary");
  const double* all = rows.data<double>();

  StepSummary out;
  std::vector<double> losses;
  int flags = 0;
  for (int rank = 0; rank < comm.size(); ++rank, all += kColumns) {
    losses.push_back(all[kLoss]);
    out.tokens += static_cast<std::int64_t>(all[kTokens]);
    const int bits = static_cast<int>(all[kFlags]);
    flags |= bits;
    if (out.flagged_rank < 0 && (bits & (kNonfinite | kError)) != 0) out.flagged_rank = rank;
    // Every rank holds the whole reduced gradient. A difference means that the replicas have drifted apart (faulty
    // memory, another build): going on would train several models.
    if (rank == 0) out.squared_norm = all[kNorm];
    const bool same = std::bit_cast<std::uint64_t>(all[kNorm]) == std::bit_cast<std::uint64_t>(out.squared_norm) ||
                      (std::isnan(all[kNorm]) && std::isnan(out.squared_norm));
    if (!same)
      fail(Exit::peer, "step summary", "rank ", rank,
           " holds another gradient than rank 0: the squared norms differ by ", all[kNorm] - out.squared_norm, " at ",
           out.squared_norm, ". Are all ranks the same build on sound machines?");
  }
  out.loss_sum = tree_sum(losses);
  out.flags = {(flags & kStop) != 0, (flags & kInterrupt) != 0, (flags & kNonfinite) != 0, (flags & kError) != 0};
  return out;
}

}  // namespace sieve
