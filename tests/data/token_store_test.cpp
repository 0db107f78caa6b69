// Opening, checking and verifying shards, and every way in which they can be wrong.
#include "data/token_store.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "corpus.h"
#include "io/file.h"
#include "io/hdf5.h"

using namespace sieve;
using namespace sieve::test;
namespace fs = std::filesystem;

using Ids = std::vector<std::int32_t>;

TEST_CASE("token store: patterns", "[store]") {
  const Folder folder;
  const auto t = bpe();
  const std::string train = make_shards(folder, *t);
  const TokenStore all(train);
  REQUIRE(all.shards().size() > 3);
  CHECK(TokenStore(train + "/*.h5").tokens() == all.tokens());
  CHECK(TokenStore(train + "/shard_0000[01].h5").shards().size() == 2);
  const TokenStore swapped({train + "/shard_00001.h5", train + "/shard_00000.h5"}, t.get());
  CHECK(swapped.shards()[0].tokens == all.shards()[1].tokens);
  CHECK(swapped.data_hash() != all.data_hash());
  CHECK(all.data_hash() == TokenStore(train + "/*.h5").data_hash());
  CHECK(expand_shard_patterns({train}).size() == all.shards().size());
  check_error(Exit::data, {"none*.h5", "no file matches"}, [&] { TokenStore{train + "/none*.h5"}; });
  check_error(Exit::data, {"gone.h5", "no such file"}, [&] { TokenStore{train + "/gone.h5"}; });
  check_error(Exit::data, {"shard_00000.h5", "twice"}, [&] { TokenStore({train, train + "/shard_00000.h5"}); });
  fs::create_directories(folder / "void");
  check_error(Exit::data, {"void", "no .h5 file"}, [&] { TokenStore{folder / "void"}; });
}

TEST_CASE("token store: shards of other tokenizers", "[store][errors]") {
  const Folder folder;
  const auto t = bpe(), byte = make_byte_tokenizer();
  const std::string a = make_shards(folder, *t, "a"), b = make_shards(folder, *byte, "b");
  check_error(Exit::data, {"b/train/shard_00000.h5", "byte", "bpe-401", hex64(t->hash()), hex64(byte->hash())}, [&] {
    TokenStore({a, b});
  });
  check_error(Exit::data, {"a/train/shard_00000.h5", "bpe-401", "in use is byte", hex64(byte->hash())},
              [&] { TokenStore(a, byte.get()); });
}

TEST_CASE("token store: damage is found and named", "[store][errors]") {
  const Folder folder;
  const auto t = bpe();
  const std::string train = make_shards(folder, *t), victim = train + "/shard_00001.h5";
  const std::string good = read_file(victim, 1 << 20);
  const auto write = [&](const std::string& bytes) { std::ofstream(victim, std::ios::binary) << bytes; };
  const ShardInfo info = TokenStore(victim).shards()[0];
  const std::uint64_t tokens_at = [&] { return Hdf5File::open(victim).dataset("tokens").byte_offset(); }();

  SECTION("truncated") {
    for (const std::size_t size : {good.size() - 1, good.size() - 100, good.size() / 2, std::size_t{100}}) {
      write(good.substr(0, size));
      check_error(Exit::data, {"shard_00001.h5", "truncated", cat(size, " of ", good.size(), " bytes")},
                  [&] { TokenStore{train}; });
    }
    for (const std::size_t size : {0, 7, 47}) {
      write(good.substr(0, size));
      check_error(Exit::data, {"shard_00001.h5", "not a token shard"}, [&] { TokenStore{train}; });
    }
  }
  SECTION("not HDF5, or HDF5 of something else") {
    write(std::string(5000, 'x'));
    check_error(Exit::data, {"shard_00001.h5", "no HDF5 signature"}, [&] { TokenStore{train}; });
    Hdf5File other = Hdf5File::create(victim);
    other.create_dataset("weights", H5Type::u16, 3);
    other.close();
    check_error(Exit::data, {"shard_00001.h5", "not a token shard"}, [&] { TokenStore{train}; });
  }
  SECTION("any flipped token bit fails verify") {
    for (const std::int64_t token : {std::int64_t{0}, info.tokens / 2, info.tokens - 1}) {
      std::string bad = good;
      bad[tokens_at + static_cast<std::size_t>(2 * token)] ^= 1;
      write(bad);
      const TokenStore store(train);  // opening reads no tokens
      check_error(Exit::data, {"shard_00001.h5", "tokens", "checksum", hex64(info.tokens_xxh3)},
                  [&] { store.verify(); });
    }
  }
  SECTION("an id beyond the vocabulary is refused when read") {
    std::string bad = good;
    bad[tokens_at + 11] = '\xff';
    write(bad);
    const TokenStore store(victim);
    Ids ids(10);
    check_error(Exit::data, {"shard_00001.h5", "token 5", "vocabulary has 401"}, [&] { store.read(0, ids); });
  }
  SECTION("document offsets") {
    const std::uint64_t at = [&] { return Hdf5File::open(victim).dataset("document_offsets").byte_offset(); }();
    std::string bad = good;
    bad[at + 8] ^= 1;
    write(bad);
    check_error(Exit::data, {"shard_00001.h5", "document_offsets", "checksum"}, [&] { TokenStore(train).verify(); });
    bad = good;
    bad[at + 8 * static_cast<std::size_t>(info.documents)] ^= 1;  // the last must be the number of tokens
    write(bad);
    check_error(Exit::data, {"shard_00001.h5", "documents cover"}, [&] { TokenStore{train}; });
  }
  SECTION("whatever byte is damaged, no token changes unnoticed") {
    const std::uint64_t offsets_at = [&] { return Hdf5File::open(victim).dataset("document_offsets").byte_offset(); }();
    const auto inside = [](std::size_t i, std::uint64_t begin, std::int64_t bytes) {
      return i >= begin && i < begin + static_cast<std::uint64_t>(bytes);
    };
    Ids expected(static_cast<std::size_t>(info.tokens));
    TokenStore(victim).read(0, expected);
    const auto survives = [&](std::size_t i) {
      const bool data = inside(i, tokens_at, 2 * info.tokens) || inside(i, offsets_at, 8 * (info.documents + 1));
      std::string bad = good;
      bad[i] ^= '\x55';
      write(bad);
      try {
        const TokenStore store(victim, t.get());
        if (data) {  // found by the checksum
          store.verify();
          return false;
        }
        Ids ids(static_cast<std::size_t>(store.tokens()));  // metadata: refused when opened, or of no effect
        store.read(0, ids);
        return ids == expected;
      } catch (const Error& e) { return e.code() == Exit::data; }
    };
    // In a child: the HDF5 library leaks what it had read of damaged metadata.
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      for (std::size_t i = 0; i < good.size(); i += 7) {
        if (survives(i)) continue;
        std::fprintf(stderr, "damaged byte %zu is not noticed\n", i);
        _exit(1);
      }
      _exit(0);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
}
