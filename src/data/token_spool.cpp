#include "data/token_spool.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace sieve {
namespace {

constexpr std::size_t kBuffer = 1 << 20;    // bytes written at once
constexpr std::int64_t kRecords = 1 << 12;  // read at once

}  // namespace

TokenSpool::TokenSpool(const std::filesystem::path& folder, int token_bytes)
    : tokens_path_(folder / "tokens.raw"),
      table_path_(folder / "documents.raw"),
      token_bytes_(token_bytes),
      tokens_file_(std::in_place, tokens_path_),
      table_file_(std::in_place, table_path_) {
  buffer_.reserve(kBuffer);
}

void TokenSpool::append(std::span<const std::int32_t> ids) {
  const auto width = static_cast<std::size_t>(token_bytes_);
  for (const std::int32_t id : ids) {
    std::byte raw[4];
    std::memcpy(raw, &id, 4);  // little-endian: the low bytes come first
    buffer_.insert(buffer_.end(), raw, raw + width);
    if (buffer_.size() + 4 > kBuffer) {
      tokens_file_->write(buffer_.data(), buffer_.size());
      buffer_.clear();
    }
  }
  tokens_ += static_cast<std::int64_t>(ids.size());
}

void TokenSpool::end_document(std::uint64_t hash) {
  const Document record{document_begin_, tokens_ - document_begin_, hash};
  require(record.tokens > 0, "prepare", "an empty document in the spool");
  table_file_->write(&record, sizeof(record));
  document_begin_ = tokens_;
  ++documents_;
}

void TokenSpool::finish() {
  tokens_file_->write(buffer_.data(), buffer_.size());
  buffer_ = {};
  tokens_file_->close();
  table_file_->close();
  tokens_in_.emplace(tokens_path_);
  table_in_.emplace(table_path_);
}

void TokenSpool::each_document(const std::function<void(std::int64_t, const Document&)>& f) const {
  std::vector<Document> records;
  for (std::int64_t at = 0; at < documents_; at += kRecords) {
    records.resize(static_cast<std::size_t>(std::min(kRecords, documents_ - at)));
    table_in_->read_at(static_cast<std::uint64_t>(at) * sizeof(Document), std::as_writable_bytes(std::span(records)));
    for (std::size_t i = 0; i < records.size(); ++i) f(at + static_cast<std::int64_t>(i), records[i]);
  }
}

void TokenSpool::read(std::int64_t begin, std::span<std::byte> out) const {
  tokens_in_->read_at(static_cast<std::uint64_t>(begin * token_bytes_), out);
}

}  // namespace sieve
