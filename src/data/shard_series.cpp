#include "data/shard_series.h"

#include <algorithm>
#include <cstdio>

#include "io/file.h"

namespace sieve {
namespace {

constexpr std::size_t kMaxShardDocuments = 1 << 22;  // bounds the memory for a shard's offsets

}  // namespace

ShardSeries::ShardSeries(const TokenSpool& spool, const ShardHeader& header, std::filesystem::path folder,
                         std::int64_t shard_tokens, PreparedSplit& out)
    : spool_(spool), header_(header), folder_(std::move(folder)), shard_tokens_(shard_tokens), out_(out) {
  make_directories(folder_);
}

void ShardSeries::add(std::initializer_list<Range> document) {
  std::int64_t tokens = 0;
  for (const Range& r : document) tokens += r.tokens;
  if (!sizes_.empty() && (tokens_ + tokens > shard_tokens_ || sizes_.size() == kMaxShardDocuments)) flush();
  for (const Range& r : document) {
    if (!ranges_.empty() && ranges_.back().begin + ranges_.back().tokens == r.begin) {
      ranges_.back().tokens += r.tokens;
    } else {
      ranges_.push_back(r);
    }
  }
  sizes_.push_back(tokens);
  tokens_ += tokens;
}

void ShardSeries::flush() {
  if (sizes_.empty()) return;
  char name[40];
  std::snprintf(name, sizeof name, "shard_%05lld.h5", static_cast<long long>(header_.shard));
  const std::string path = (folder_ / name).string();
  const auto width = static_cast<std::size_t>(spool_.token_bytes());
  std::size_t range = 0;
  std::int64_t done = 0;  // of ranges_[range]
  write_shard(path, header_, sizes_, [&](std::span<std::byte> out) {
    while (!out.empty()) {
      const Range& r = ranges_[range];
      const auto n = std::min(static_cast<std::int64_t>(out.size() / width), r.tokens - done);
      spool_.read(r.begin + done, out.first(static_cast<std::size_t>(n) * width));
      out = out.subspan(static_cast<std::size_t>(n) * width);
      done += n;
      if (done == r.tokens) {
        ++range;
        done = 0;
      }
    }
  });
  out_.shards.push_back(path);
  out_.documents += static_cast<std::int64_t>(sizes_.size());
  out_.tokens += tokens_;
  ++header_.shard;
  sizes_.clear();
  ranges_.clear();
  tokens_ = 0;
}

}  // namespace sieve
