#include "attention/random_scores.h"

#include "attention/document_starts.h"
#include "attention/kernels/random_scores.h"
#include "tensor/same_device.h"

namespace sieve {

Tensor document_numbers(const Tensor& tokens, const Tensor& document_starts, std::int64_t first_position,
                        const Tensor& before) {
  require(tokens.rank() == 2 && tokens.dtype() == DType::i32, "document numbers", "wants tokens i32 (B, T), got ",
          name_of(tokens.dtype()), " ", tokens.shape());
  const std::int64_t B = tokens.size(0), T = tokens.size(1);
  require(first_position == 0 || (before.defined() && before.shape() == Shape{B} && before.dtype() == DType::i64),
          "document numbers", "want the numbers i64 (", B, ") of the position before ", first_position);
  require(first_position == 0 || !document_starts.defined(), "document numbers", "go on in one document a row");
  require_on(tokens.device(), "document numbers", {{"the numbers before", before}});
  const Tensor ids = tokens.contiguous(),
               starts = checked_starts(document_starts, B, T, tokens.device(), "document numbers"),
               earlier = first_position > 0 ? before.contiguous() : Tensor();
  Tensor out = empty({B, T}, DType::i64, tokens.stream());
  DocumentNumbersArgs args;
  args.tokens_BT = ids.data<std::int32_t>();
  args.document_starts_BT = starts.defined() ? starts.data<std::int32_t>() : nullptr;
  args.before_B = earlier.defined() ? earlier.data<std::int64_t>() : nullptr;
  args.out_BT = out.data<std::int64_t>();
  args.B = B, args.T = T, args.first_position = first_position;
  launch(tokens.stream(), args);
  return out;
}

Tensor random_scores(const Tensor& numbers, std::int64_t heads, const RandomScores& what,
                     const Tensor& document_starts) {
  require(numbers.rank() == 2 && numbers.dtype() == DType::i64, "random scores", "wants numbers i64 (B, T), got ",
          name_of(numbers.dtype()), " ", numbers.shape());
  const std::int64_t B = numbers.size(0), T = numbers.size(1);
  const Tensor own = numbers.contiguous(),
               starts = checked_starts(document_starts, B, T, numbers.device(), "random scores");
  Tensor out = empty({B, heads, T}, DType::f32, numbers.stream());
  RandomScoresArgs args;
  args.numbers_BT = own.data<std::int64_t>();
  args.document_starts_BT = starts.defined() ? starts.data<std::int32_t>() : nullptr;
  args.out_BHT = out.data<float>();
  args.B = B, args.H = heads, args.T = T, args.seed = what.seed, args.first_position = what.first_position;
  launch(numbers.stream(), args);
  return out;
}

}  // namespace sieve
