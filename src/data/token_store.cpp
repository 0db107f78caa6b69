#include "data/token_store.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>
#include <system_error>

#include "core/error.h"
#include "data/shard_writer.h"
#include "data/tokenizer.h"
#include "data/xxh3_stream.h"
#include "io/file.h"
#include "io/hdf5.h"
#include "io/text_input.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;
static_assert(std::endian::native == std::endian::little, "shards are little-endian and read as they are");

constexpr std::uint64_t kIndexStep = 512;           // every so many document offsets one is kept in memory
constexpr std::uint64_t kVerifyPiece = 4ull << 20;  // bytes

template <class... Parts>
[[noreturn]] void bad_shard(const std::string& path, const Parts&... parts) {
  fail(Exit::data, "tokens", path, ": ", parts...);
}

// HDF5 notes the file's length in its superblock (HDF5 file format specification, II.A): a shorter file was cut off,
// and saying so with both numbers is more use than the library's message.
void check_length(const ReadFile& file) {
  std::array<std::byte, 48> head{};
  const std::string path = file.path().string();
  if (file.size() < head.size()) bad_shard(path, "not a token shard: ", file.size(), " bytes");
  file.read_at(0, head);
  if (std::memcmp(head.data(), "\x89HDF\r\n\x1a\n", 8) != 0) bad_shard(path, "not a token shard: no HDF5 signature");
  const int version = static_cast<int>(head[8]);
  const bool wide = static_cast<int>(version < 2 ? head[13] : head[9]) == 8;  // 8-byte addresses
  if (version > 3 || !wide) return;                                           // leave it to the library
  std::uint64_t expected;
  std::memcpy(&expected, head.data() + (version < 2 ? 40 : 28), 8);
  if (file.size() < expected) {
    bad_shard(path, "truncated: ", file.size(), " of ", expected, " bytes; prepare or copy it again");
  }
}

std::uint64_t parse_hex(const std::string& path, const std::string& name, const std::string& text) {
  std::uint64_t value = 0;
  for (const char c : text) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0 || text.size() != 16) bad_shard(path, "attribute ", name, " is no hash: \"", text, '"');
    value = value << 4 | static_cast<std::uint64_t>(digit);
  }
  if (text.empty()) bad_shard(path, "attribute ", name, " is empty");
  return value;
}

}  // namespace

struct TokenStore::Shard {
  ReadFile file;
  std::uint64_t tokens_at = 0, offsets_at = 0;  // bytes in the file
  std::vector<std::uint64_t> index;             // document_offsets[0], [kIndexStep], ...

  std::vector<std::uint64_t> offsets(std::uint64_t begin, std::uint64_t count) const {
    std::vector<std::uint64_t> out(count);
    file.read_at(offsets_at + begin * 8, std::as_writable_bytes(std::span(out)));
    return out;
  }

  void open(const std::string& path, ShardInfo& info) {
    file = ReadFile(path);
    check_length(file);
    const Hdf5File h5 = Hdf5File::open(path);
    if (!h5.has_attribute("sieve_format") || h5.text_attribute("sieve_format") != "tokens") {
      bad_shard(path, "an HDF5 file, but not a token shard; `sieve data prepare` makes them");
    }
    if (const std::int64_t v = h5.integer_attribute("version"); v != kShardVersion) {
      bad_shard(path, "shard version ", v, ", this program reads version ", kShardVersion);
    }
    const Hdf5Dataset tokens = h5.dataset("tokens"), documents = h5.dataset("document_offsets");
    const auto hash = [&](const std::string& name) { return parse_hex(path, name, h5.text_attribute(name)); };
    info.path = path;
    info.file_bytes = file.size();
    info.tokens = static_cast<std::int64_t>(tokens.size());
    info.token_bytes = static_cast<int>(size_of(tokens.type()));
    info.vocab_size = h5.integer_attribute("vocab_size");
    info.separator = h5.integer_attribute("separator");
    info.tokenizer_name = h5.text_attribute("tokenizer_name");
    info.split = h5.text_attribute("split");
    info.tokenizer_hash = hash("tokenizer_hash");
    info.source_hash = hash("source_hash");
    info.tokens_xxh3 = hash("tokens_xxh3");
    info.offsets_xxh3 = hash("offsets_xxh3");
    if (info.vocab_size < 1 || info.vocab_size > (std::int64_t{1} << 31) ||
        info.token_bytes != token_width(info.vocab_size) || documents.type() != H5Type::u64 || documents.size() < 2) {
      bad_shard(path, "vocab_size ", info.vocab_size, ", tokens ", name_of(tokens.type()), ", ", documents.size(),
                " document offsets do not fit together");
    }
    info.documents = static_cast<std::int64_t>(documents.size()) - 1;
    tokens_at = tokens.byte_offset();
    offsets_at = documents.byte_offset();
    // One pass in pieces: only every kIndexStep-th offset stays in memory, the rest is read when asked for.
    for (std::uint64_t i = 0; i < documents.size(); i += kIndexStep) index.push_back(offsets(i, 1)[0]);
    const std::uint64_t last = offsets(documents.size() - 1, 1)[0];
    if (index.front() != 0 || last != tokens.size()) {
      bad_shard(path, "documents cover tokens ", index.front(), " to ", last, ", there are ", tokens.size());
    }
  }

  // Appends base + the document starts in [begin, end) of this shard.
  void starts(const ShardInfo& info, std::uint64_t begin, std::uint64_t end, std::int64_t base,
              std::vector<std::int64_t>& out) const {
    const auto documents = static_cast<std::uint64_t>(info.documents);
    const auto after = std::upper_bound(index.begin(), index.end(), begin);
    auto block = static_cast<std::uint64_t>(after - index.begin()) - 1;  // index[0] is 0: there is one
    // Starts equal to index[block] may also end the block before only if documents were empty, and they are not.
    for (std::uint64_t at = block * kIndexStep; at < documents; at += kIndexStep) {
      for (const std::uint64_t start : offsets(at, std::min(kIndexStep, documents - at))) {
        if (start >= end) return;
        if (start >= begin) out.push_back(base + static_cast<std::int64_t>(start));
      }
    }
  }
};

std::vector<std::string> expand_shard_patterns(const std::vector<std::string>& patterns) {
  std::vector<std::string> out;
  std::set<std::string> seen;
  for (const std::string& pattern : patterns) {
    std::vector<fs::path> files;
    std::error_code error;
    const bool folder = fs::is_directory(pattern, error);
    if (folder) {
      static const std::string kExtensions[] = {".h5"};
      files = list_text_files(pattern, kExtensions);
    } else if (fs::exists(pattern, error)) {
      files.push_back(pattern);
    } else {
      files = glob_files(pattern);
    }
    if (files.empty()) {
      const bool wild = pattern.find_first_of("*?[") != std::string::npos;
      fail(Exit::data, "tokens", pattern,
           fs::is_directory(pattern) ? ": no .h5 file in this folder"
           : wild                    ? ": no file matches"
                                     : ": no such file",
           "; make shards with `sieve data prepare`");
    }
    for (const fs::path& f : files) {
      if (!seen.insert(fs::weakly_canonical(f, error).string()).second) {
        fail(Exit::data, "tokens", f.string(), ": the same shard is named twice");
      }
      out.push_back(f.string());
    }
  }
  return out;
}

TokenStore::TokenStore(const std::vector<std::string>& patterns, const Tokenizer* expected) {
  for (const std::string& p : patterns) name_ += (name_.empty() ? "" : ", ") + p;
  if (patterns.empty()) fail(Exit::data, "tokens", "no shards are named");
  token_begin_.push_back(0);
  document_begin_.push_back(0);
  for (const std::string& path : expand_shard_patterns(patterns)) {
    files_.push_back(std::make_unique<Shard>());
    ShardInfo& info = infos_.emplace_back();
    files_.back()->open(path, info);
    const ShardInfo& first = infos_.front();
    if (info.tokenizer_hash != first.tokenizer_hash || info.vocab_size != first.vocab_size) {
      bad_shard(path, "made with tokenizer ", info.tokenizer_name, " (", hex64(info.tokenizer_hash), "), but ",
                first.path, " with ", first.tokenizer_name, " (", hex64(first.tokenizer_hash), ')');
    }
    if (expected && info.tokenizer_hash != expected->hash()) {
      bad_shard(path, "made with tokenizer ", info.tokenizer_name, " (", hex64(info.tokenizer_hash),
                "), but the tokenizer in use is ", expected->name(), " (", hex64(expected->hash()),
                "); prepare the data again or name the tokenizer that made it");
    }
    token_begin_.push_back(token_begin_.back() + info.tokens);
    document_begin_.push_back(document_begin_.back() + info.documents);
  }
}

TokenStore::~TokenStore() = default;
std::int64_t TokenStore::tokens() const { return token_begin_.back(); }
std::int64_t TokenStore::documents() const { return document_begin_.back(); }

namespace {

// Widens and checks: an id beyond the vocabulary would read outside the embedding table.
template <class T>
void read_ids(const ReadFile& file, const ShardInfo& info, std::uint64_t at, std::int64_t first,
              std::span<std::int32_t> out) {
  std::vector<T> raw(out.size());
  file.read_at(at, std::as_writable_bytes(std::span(raw)));
  T largest = 0;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    largest = std::max(largest, raw[i]);
    out[i] = static_cast<std::int32_t>(raw[i]);
  }
  if (largest >= info.vocab_size) {
    const auto where = std::find_if(raw.begin(), raw.end(), [&](T id) { return id >= info.vocab_size; });
    bad_shard(info.path, "token ", first + (where - raw.begin()), " is id ", *where, ", the vocabulary has ",
              info.vocab_size, ": the file is damaged; `sieve data verify` checks it");
  }
}

}  // namespace

void TokenStore::read(std::int64_t begin, std::span<std::int32_t> out) const {
  require(begin >= 0 && begin <= tokens() && static_cast<std::int64_t>(out.size()) <= tokens() - begin, "tokens", name_,
          ": [", begin, ", ", begin, " + ", out.size(), ") of ", tokens());
  auto s = static_cast<std::size_t>(std::upper_bound(token_begin_.begin(), token_begin_.end(), begin) -
                                    token_begin_.begin() - 1);
  while (!out.empty()) {
    const std::int64_t local = begin - token_begin_[s];
    const auto count = std::min<std::int64_t>(static_cast<std::int64_t>(out.size()), infos_[s].tokens - local);
    const auto part = out.first(static_cast<std::size_t>(count));
    const std::uint64_t at = files_[s]->tokens_at + static_cast<std::uint64_t>(local * infos_[s].token_bytes);
    if (infos_[s].token_bytes == 2) {
      read_ids<std::uint16_t>(files_[s]->file, infos_[s], at, local, part);
    } else {
      read_ids<std::uint32_t>(files_[s]->file, infos_[s], at, local, part);
    }
    out = out.subspan(part.size());
    begin += count;
    ++s;
  }
}

void TokenStore::document_starts(std::int64_t begin, std::int64_t end, std::vector<std::int64_t>& out) const {
  begin = std::max<std::int64_t>(begin, 0);
  end = std::min(end, tokens());
  for (std::size_t s = 0; s < files_.size(); ++s) {
    if (token_begin_[s + 1] <= begin || token_begin_[s] >= end) continue;
    const std::int64_t base = token_begin_[s];
    files_[s]->starts(infos_[s], static_cast<std::uint64_t>(std::max(begin, base) - base),
                      static_cast<std::uint64_t>(std::min(end, token_begin_[s + 1]) - base), base, out);
  }
}

std::uint64_t TokenStore::data_hash() const {
  Xxh3Stream hash;
  for (const ShardInfo& s : infos_) {
    for (const std::uint64_t v : {s.tokens_xxh3, s.offsets_xxh3, static_cast<std::uint64_t>(s.tokens)}) {
      hash.update(&v, sizeof(v));
    }
  }
  return hash.digest();
}

void TokenStore::verify(const std::function<void(std::uint64_t, std::uint64_t)>& progress) const {
  std::uint64_t all = 0, done = 0;
  for (const ShardInfo& i : infos_) all += static_cast<std::uint64_t>(i.tokens * i.token_bytes + (i.documents + 1) * 8);
  std::vector<std::byte> piece(kVerifyPiece);
  for (std::size_t s = 0; s < files_.size(); ++s) {
    const ShardInfo& info = infos_[s];
    const auto checksum = [&](const char* name, std::uint64_t at, std::uint64_t bytes, std::uint64_t stored) {
      Xxh3Stream hash;
      for (std::uint64_t i = 0; i < bytes; i += kVerifyPiece) {
        const auto part = std::span(piece).first(static_cast<std::size_t>(std::min(kVerifyPiece, bytes - i)));
        files_[s]->file.read_at(at + i, part);
        hash.update(part.data(), part.size());
        done += part.size();
        if (progress) progress(done, all);
      }
      if (hash.digest() != stored) {
        bad_shard(info.path, name, ": checksum ", hex64(hash.digest()), ", stored ", hex64(stored),
                  ": the file is damaged; prepare or copy it again");
      }
    };
    checksum("tokens", files_[s]->tokens_at, static_cast<std::uint64_t>(info.tokens * info.token_bytes),
             info.tokens_xxh3);
    checksum("document_offsets", files_[s]->offsets_at, static_cast<std::uint64_t>(info.documents + 1) * 8,
             info.offsets_xxh3);
    // Whole and unchanged; now that it was written well: ids in range, documents not empty and in order.
    std::vector<std::int32_t> ids(kVerifyPiece / 4);
    for (std::int64_t t = 0; t < info.tokens; t += static_cast<std::int64_t>(ids.size())) {
      const auto n = std::min<std::int64_t>(static_cast<std::int64_t>(ids.size()), info.tokens - t);
      read(token_begin_[s] + t, std::span(ids).first(static_cast<std::size_t>(n)));
    }
    std::uint64_t previous = 0;
    for (std::uint64_t d = 1; d <= static_cast<std::uint64_t>(info.documents); d += kIndexStep) {
      const std::uint64_t n = std::min(kIndexStep, static_cast<std::uint64_t>(info.documents) + 1 - d);
      for (const std::uint64_t offset : files_[s]->offsets(d, n)) {
        if (offset <= previous) bad_shard(info.path, "document_offsets: ", offset, " follows ", previous);
        previous = offset;
      }
    }
  }
}

std::string TokenStore::report() const {
  std::string out;
  std::uint64_t bytes = 0;
  for (const ShardInfo& i : infos_) {
    bytes += i.file_bytes;
    out += cat(i.path, "  ", i.split, "  ", i.tokens, " tokens (u", 8 * i.token_bytes, ")  ", i.documents,
               " documents  ", human_bytes(i.file_bytes), "  source ", hex64(i.source_hash), '\n');
  }
  const ShardInfo& first = infos_.front();
  out += cat(infos_.size(), infos_.size() == 1 ? " shard, " : " shards, ", tokens(), " tokens, ", documents(),
             " documents, ", human_bytes(bytes), '\n', "tokenizer ", first.tokenizer_name, "  vocabulary ",
             first.vocab_size, "  hash ", hex64(first.tokenizer_hash), "  separator ", first.separator, '\n',
             "data hash ", hex64(data_hash()), '\n');
  return out;
}

}  // namespace sieve
