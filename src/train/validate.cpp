#include "train/validate.h"

namespace sieve {

double validation_loss(const Decoder& model, const ValidationSet& set, Communicator& comm) {
  const NoGrad no_grad;
  const Progress::Scope scope(comm.progress(), "validation");
  // One rank fills a block's place, the others leave 0 there: the sum over ranks is exact in any order.
  Tensor sums = zeros({set.blocks()}, DType::f64);
  for (std::int64_t b = comm.rank(); b < set.blocks(); b += comm.size()) {
    const Batch batch = set.block(b);
    Tensor losses;
    model.loss_sum({batch.tokens, batch.targets, batch.document_starts}, &losses);
    losses = losses.to(Stream{});
    for (const float loss : losses.span<float>()) sums.data<double>()[b] += static_cast<double>(loss);
    comm.progress().beat();
  }
  comm.all_reduce(sums, ReduceOp::sum, "validation sums");
  double total = 0;
  for (const double sum : sums.span<double>()) total += sum;
  return total / static_cast<double>(set.targets());
}

double bytes_per_target(const ValidationSet& set, const Tokenizer& tokenizer) {
  const std::vector<std::int32_t> bytes = bytes_per_token(tokenizer);
  std::int64_t sum = 0;
  for (std::int64_t b = 0; b < set.blocks(); ++b) {
    const Batch batch = set.block(b);
    for (const std::int32_t target : batch.targets.span<std::int32_t>()) {
      if (target >= 0) sum += bytes.at(static_cast<std::size_t>(target));
    }
  }
  return static_cast<double>(sum) / static_cast<double>(set.targets());
}

}  // namespace sieve
