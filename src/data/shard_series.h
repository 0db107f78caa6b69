// Documents of a spool -> the shards of one split.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <vector>

#include "data/prepare.h"
#include "data/shard_writer.h"
#include "data/token_spool.h"

namespace sieve {

class ShardSeries {
 public:
  struct Range {
    std::int64_t begin, tokens;  // in the spool
  };
  // Creates `folder`. `out` receives paths and counts as shards are written.
  ShardSeries(const TokenSpool& spool, const ShardHeader& header, std::filesystem::path folder,
              std::int64_t shard_tokens, PreparedSplit& out);

  void add(std::initializer_list<Range> document);  // writes the shard first if the document has no room in it
  void flush();                                     // writes what has been added

 private:
  const TokenSpool& spool_;
  ShardHeader header_;
  std::filesystem::path folder_;
  std::int64_t shard_tokens_;
  PreparedSplit& out_;
  std::vector<std::int64_t> sizes_;  // of the documents in the current shard
  std::vector<Range> ranges_;        // their tokens, neighbours joined
  std::int64_t tokens_ = 0;
};

}  // namespace sieve
