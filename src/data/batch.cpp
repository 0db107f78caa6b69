#include "data/batch.h"

#include <algorithm>
#include <vector>

#include "core/error.h"

namespace sieve {

Batch empty_batch(std::int64_t index, std::int64_t rows, std::int64_t seq_len, bool document_mask) {
  Batch batch;
  const Shape shape{rows, seq_len};
  batch.index = index;
  batch.tokens = empty(shape, DType::i32);
  batch.targets = empty(shape, DType::i32);
  if (document_mask) batch.document_starts = empty(shape, DType::i32);
  return batch;
}

void drop_idle_mask(Batch& batch) {
  if (!batch.document_starts.defined()) return;
  const auto starts = batch.document_starts.span<std::int32_t>();
  if (std::all_of(starts.begin(), starts.end(), [](std::int32_t first) { return first == 0; }))
    batch.document_starts = {};
}

void fill_row(Batch& batch, std::int64_t row, const TokenSource& source, std::int64_t begin, std::int64_t targets) {
  const std::int64_t T = batch.tokens.size(1);
  require(targets >= 0 && targets <= T, "batch", targets, " targets in a row of ", T);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(targets + 1));
  source.read(begin, ids);
  std::int32_t* inputs = batch.tokens.data<std::int32_t>() + row * T;
  std::int32_t* wanted = batch.targets.data<std::int32_t>() + row * T;
  std::copy(ids.begin(), ids.end() - 1, inputs);
  std::copy(ids.begin() + 1, ids.end(), wanted);
  std::fill(inputs + targets, inputs + T, 0);
  std::fill(wanted + targets, wanted + T, -1);
  batch.target_count += targets;

  if (!batch.document_starts.defined()) return;
  std::vector<std::int64_t> starts;
  source.document_starts(begin, begin + targets, starts);
  std::int32_t* first = batch.document_starts.data<std::int32_t>() + row * T;
  std::int32_t current = 0;  // a document that began before the row counts from the row's first token
  std::size_t next = 0;
  for (std::int64_t t = 0; t < T; ++t) {
    if (next < starts.size() && starts[next] == begin + t) {
      current = static_cast<std::int32_t>(t);
      ++next;
    }
    first[t] = current;
  }
}

}  // namespace sieve
