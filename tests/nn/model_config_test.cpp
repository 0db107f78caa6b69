#include "nn/model_config.h"

#include "support/catch.h"

using namespace sieve;

namespace {

std::vector<std::string> problems(const ModelConfig& c, std::int64_t seq_len) {
  std::vector<std::string> out;
  c.check(seq_len, [&](const std::string& path, const std::string& message) { out.push_back(path + ": " + message); });
  return out;
}

}  // namespace

TEST_CASE("model config: each impossible shape is named with its key", "[nn]") {
  ModelConfig c;
  AttentionKindConfig sk;
  sk.type = AttentionKind::sparsek;
  sk.k = 8, sk.window = 4;
  c.attention.kinds["sk"] = sk;
  c.attention.pattern = {"sk"};
  CHECK(problems(c, 64).empty());

  const auto only = [&](ModelConfig broken, const std::string& path) {
    const auto found = problems(broken, 64);
    INFO(path);
    REQUIRE(found.size() == 1);
    CHECK(found[0].rfind(path + ":", 0) == 0);
  };
  ModelConfig b = c;
  b.n_heads = 5, b.n_kv_heads = 5;
  only(b, "n_heads");
  b = c, b.n_kv_heads = 3;
  only(b, "n_kv_heads");
  b = c, b.max_seq = 63;
  only(b, "max_seq");
  b = c, b.attention.kinds["sk"].k = 65;
  only(b, "attention.kinds.sk.k");
  b = c, b.attention.kinds["sk"].window = 65;
  only(b, "attention.kinds.sk.window");
  b = c, b.attention.kinds["sk"].window = 0;
  only(b, "attention.kinds.sk.window");
  b = c, b.attention.pattern = {"sk", "sk", "sk"};
  only(b, "attention.pattern");
  b = c, b.attention.pattern = {"other"};
  only(b, "attention.pattern");
  b = c, b.rope.partial = 0.1;  // 3 of 32 dimensions
  only(b, "rope.partial");
}

TEST_CASE("model config: resolving fills every auto once", "[nn]") {
  ModelConfig c;
  AttentionKindConfig sk;
  sk.type = AttentionKind::sparsek;
  sk.k = 8, sk.window = 4;
  c.attention.kinds["sk"] = sk;
  c.attention.kinds["r"] = {.type = AttentionKind::random_rows, .window = 4, .k = 8};
  c.attention.kinds["own"] = {.type = AttentionKind::random_rows, .window = 4, .k = 8, .seed = 0};
  c.resolve(257, 64, 1337);
  CHECK(*c.vocab_size == 257);
  CHECK(*c.attention.kinds["sk"].score.slope == 1.0 / 64);
  CHECK(*c.attention.kinds["r"].seed == 1337);
  CHECK(*c.attention.kinds["own"].seed == 0);
  CHECK_FALSE(c.attention.kinds["sk"].seed.has_value());
  CHECK(c.attention_spec(3).sparsek.clamp_distance == 4);
  c.resolve(999, 4096, 7);  // a checkpoint's configuration keeps what training resolved
  CHECK(*c.vocab_size == 257);
  CHECK(*c.attention.kinds["sk"].score.slope == 1.0 / 64);
  CHECK(*c.attention.kinds["r"].seed == 1337);
}
