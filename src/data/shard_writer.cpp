#include "data/shard_writer.h"

#include <algorithm>

#include "core/error.h"
#include "data/xxh3_stream.h"
#include "io/file.h"
#include "io/hdf5.h"

namespace sieve {
namespace {

constexpr std::int64_t kPieceTokens = 1 << 19;

template <class T>
std::uint64_t copy_tokens(const Hdf5Dataset& dataset, std::int64_t tokens,
                          const std::function<void(std::span<std::byte>)>& next) {
  Xxh3Stream hash;
  std::vector<T> piece(static_cast<std::size_t>(std::min(tokens, kPieceTokens)));
  for (std::int64_t at = 0; at < tokens; at += kPieceTokens) {
    const auto part = std::span(piece).first(static_cast<std::size_t>(std::min(kPieceTokens, tokens - at)));
    next(std::as_writable_bytes(part));
    hash.update(part.data(), part.size_bytes());
    dataset.write(static_cast<std::uint64_t>(at), std::span<const T>(part));
  }
  return hash.digest();
}

}  // namespace

void write_shard(const std::string& path, const ShardHeader& header, std::span<const std::int64_t> document_tokens,
                 const std::function<void(std::span<std::byte>)>& next) {
  const Tokenizer& tokenizer = *header.tokenizer;
  std::vector<std::uint64_t> offsets(1, 0);
  for (const std::int64_t n : document_tokens) offsets.push_back(offsets.back() + static_cast<std::uint64_t>(n));
  const std::uint64_t tokens = offsets.back();
  const int width = token_width(tokenizer.vocab_size());

  Hdf5File file = Hdf5File::create(path);
  const Hdf5Dataset tokens_set = file.create_dataset("tokens", width == 2 ? H5Type::u16 : H5Type::u32, tokens);
  const Hdf5Dataset offsets_set = file.create_dataset("document_offsets", H5Type::u64, offsets.size());
  const std::uint64_t tokens_hash =
      width == 2 ? copy_tokens<std::uint16_t>(tokens_set, static_cast<std::int64_t>(tokens), next)
                 : copy_tokens<std::uint32_t>(tokens_set, static_cast<std::int64_t>(tokens), next);
  offsets_set.write(0, std::span<const std::uint64_t>(offsets));
  Xxh3Stream offsets_hash;
  offsets_hash.update(offsets.data(), offsets.size() * sizeof(offsets[0]));

  file.set_attribute("sieve_format", "tokens");
  file.set_attribute("version", kShardVersion);
  file.set_attribute("tokenizer_hash", hex64(tokenizer.hash()));
  file.set_attribute("tokenizer_name", tokenizer.name());
  file.set_attribute("vocab_size", tokenizer.vocab_size());
  file.set_attribute("separator", std::int64_t{tokenizer.separator().value_or(-1)});
  file.set_attribute("source_hash", hex64(header.source_hash));
  file.set_attribute("split", header.split);
  file.set_attribute("shard", header.shard);
  file.set_attribute("tokens_xxh3", hex64(tokens_hash));
  file.set_attribute("offsets_xxh3", hex64(offsets_hash.digest()));
  file.close();
  sync_file(path);
}

}  // namespace sieve
