#include "data/validation.h"

#include <algorithm>

#include "core/error.h"

namespace sieve {

ValidationSet::ValidationSet(std::shared_ptr<const TokenSource> source, std::int64_t seq_len, std::int64_t rows,
                             bool document_mask, std::int64_t max_tokens)
    : source_(std::move(source)), seq_len_(seq_len), rows_(rows), document_mask_(document_mask) {
  require(seq_len >= 1 && rows >= 1 && max_tokens >= 0, "validation", "seq_len ", seq_len, ", rows ", rows,
          ", max_tokens ", max_tokens);
  if (source_->tokens() < 2) {
    fail(Exit::data, "validation", source_->name(), ": ", source_->tokens(),
         " tokens: at least two are needed, one to predict the other");
  }
  targets_ = source_->tokens() - 1;
  if (max_tokens > 0) targets_ = std::min(targets_, max_tokens);
}

std::int64_t ValidationSet::chunks() const { return (targets_ + seq_len_ - 1) / seq_len_; }
std::int64_t ValidationSet::blocks() const { return (chunks() + rows_ - 1) / rows_; }

Batch ValidationSet::block(std::int64_t index) const {
  require(index >= 0 && index < blocks(), "validation", "block ", index, " of ", blocks());
  const std::int64_t first = index * rows_, rows = std::min(rows_, chunks() - first);
  Batch batch = empty_batch(index, rows, seq_len_, document_mask_);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t begin = (first + row) * seq_len_;
    fill_row(batch, row, *source_, begin, std::min(seq_len_, targets_ - begin));
  }
  drop_idle_mask(batch);
  return batch;
}

}  // namespace sieve
