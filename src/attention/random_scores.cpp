#include "attention/random_scores.h"

#include "attention/document_starts.h"
#include "attention/kernels/random_scores.h"

namespace sieve {

Tensor random_scores(std::int64_t B, std::int64_t heads, std::int64_t T, const RandomScores& what,
                     const Tensor& document_starts, const Stream& stream) {
  const Tensor starts = checked_starts(document_starts, B, T, "random scores");
  Tensor out = empty({B, heads, T}, DType::f32, stream);
  RandomScoresArgs args;
  args.document_starts_BT = starts.defined() ? starts.data<std::int32_t>() : nullptr;
  args.out_BHT = out.data<float>();
  args.B = B, args.H = heads, args.T = T, args.seed = what.seed, args.first_position = what.first_position;
  launch(stream, args);
  return out;
}

}  // namespace sieve
