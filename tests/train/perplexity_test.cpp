#include "train/perplexity.h"

#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "data/token_source.h"
#include "dist/thread_communicator.h"
#include "support/catch.h"
#include "train/expression.h"
#include "train/sample_text.h"
#include "train/sampling.h"
#include "train/scored_text.h"
#include "train/validate.h"
#include "train/verify_text.h"

using namespace sieve;

namespace {

ModelConfig tiny_model(Arch arch, std::int64_t seq_len) {
  ModelConfig c;
  c.arch = arch;
  c.n_layers = 1;
  c.d_model = 16;
  c.n_heads = 2;
  c.tie_embeddings = false;
  c.resolve(257, seq_len);
  return c;
}

// Probability of byte b under a fixed unigram distribution over 257 tokens.
double unigram(std::int64_t token) {
  return (1.0 + static_cast<double>(token % 7)) / [] {
    double sum = 0;
    for (int t = 0; t < 257; ++t) sum += 1.0 + t % 7;
    return sum;
  }();
}

// A gpt2 decoder that predicts `unigram` everywhere: the final norm has weight 0 and bias e0, the head's first column
// holds log p.
std::unique_ptr<Decoder> unigram_model(std::int64_t seq_len) {
  auto model = std::make_unique<Decoder>(tiny_model(Arch::gpt2, seq_len),
                                         DecoderOptions{.compute = DType::f32, .seed = 1, .recompute = {}});
  for (const auto& p : model->parameters()) {
    if (p->name == "final_norm.weight") p->master.zero();
    if (p->name == "final_norm.bias") {
      p->master.zero();
      p->master.data<float>()[0] = 1;
    }
    if (p->name == "head.weight") {
      for (std::int64_t t = 0; t < 257; ++t) p->master.data<float>()[t * 16] = static_cast<float>(std::log(unigram(t)));
    }
    refresh_value(*p);
  }
  return model;
}

MemoryTokens bytes_source(const std::string& text, std::vector<std::int64_t> starts = {}) {
  std::vector<std::int32_t> ids;
  for (const char c : text) ids.push_back(c == '|' ? 256 : static_cast<unsigned char>(c));  // | stands for end of text
  return MemoryTokens("text", ids, std::move(starts));
}

std::vector<double> draw_histogram(const std::vector<float>& logits, const SamplingConfig& config, int draws) {
  std::vector<double> share(logits.size());
  const Philox random{11, 22};
  for (int i = 0; i < draws; ++i)
    share[static_cast<std::size_t>(sample_token(logits, config, random.uniform(static_cast<std::uint64_t>(i))))] +=
        1.0 / draws;
  return share;
}

}  // namespace

TEST_CASE("tokens are drawn with the probabilities of their logits") {
  const std::vector<float> logits{std::log(1.0f), std::log(4.0f), std::log(2.0f), std::log(1.0f)};
  const auto all = draw_histogram(logits, {}, 40000);
  CHECK(all[0] == Approx(0.125).margin(0.006));  // 4 standard deviations: 4 sqrt(p (1 - p) / n)
  CHECK(all[1] == Approx(0.5).margin(0.01));
  CHECK(all[2] == Approx(0.25).margin(0.009));
  const auto cold = draw_histogram(logits, {.temperature = 0.5}, 40000);  // squares: 1 16 4 1
  CHECK(cold[1] == Approx(16.0 / 22).margin(0.009));
  const auto two = draw_histogram(logits, {.top_k = 2}, 40000);
  CHECK(two[0] == 0);
  CHECK(two[3] == 0);
  CHECK(two[1] == Approx(2.0 / 3).margin(0.01));
  const auto tie = draw_histogram(logits, {.top_k = 3}, 40000);  // of the two equal ones the first stays
  CHECK(tie[0] == Approx(1.0 / 7).margin(0.008));
  CHECK(tie[3] == 0);
  const auto nucleus = draw_histogram(logits, {.top_p = 0.7}, 40000);  // 0.5 is not enough, 0.75 is
  CHECK(nucleus[0] + nucleus[3] == 0);
  CHECK(nucleus[2] == Approx(1.0 / 3).margin(0.01));
  const auto both = draw_histogram(logits, {.top_k = 2, .top_p = 0.6}, 1000);  // 4/6 suffices: only the likeliest
  CHECK(both[1] == Approx(1.0));
  CHECK(draw_histogram(logits, {.top_p = 1e-9}, 100)[1] == Approx(1.0));
}

TEST_CASE("sampling at its edges") {
  const std::vector<float> logits{1, 5, 5, -3};
  CHECK(sample_token(logits, {.temperature = 0}, 0.99) == 1);  // the first of equals
  CHECK(sample_token(logits, {.top_k = 99}, 0.0) == 1);
  CHECK(sample_token(logits, {}, std::nextafter(1.0, 0.0)) == 3);
  const float inf = std::numeric_limits<float>::infinity();
  CHECK(sample_token(std::vector<float>{-inf, 0, -inf}, {}, 0.999999) == 1);
  CHECK_THROWS_AS(sample_token(std::vector<float>{0, std::nanf("")}, {}, 0.5), Error);
  CHECK_THROWS_AS(sample_token(std::vector<float>{-inf, -inf}, {}, 0.5), Error);
  CHECK_THROWS_AS(sample_token(std::vector<float>{0, inf}, {}, 0.5), Error);
}

TEST_CASE("text leaves in whole characters") {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z";  // a é € 😀 z
  for (std::size_t cut = 0; cut <= text.size(); ++cut) {
    Utf8Stream stream;
    const std::string first = stream.push(text.substr(0, cut));
    CHECK(text.compare(0, first.size(), first) == 0);
    CHECK(cut - first.size() < 4);
    const std::string second = stream.push(text.substr(cut));
    CHECK(first + second == text);
    CHECK(stream.finish().empty());
  }
  const std::string bad = "\xEF\xBF\xBD";
  Utf8Stream stream;
  CHECK(stream.push("\x80x\xC0\xAFy") == bad + "x" + bad + bad + "y");
  CHECK(stream.push("\xE2\x82"
                    "A") == bad + "A");                   // a broken prefix is one character
  CHECK(stream.push("\xED\xA0\x80") == bad + bad + bad);  // a surrogate
  CHECK(stream.push("\xF0\x9F") == "");
  CHECK(stream.finish() == bad);
  CHECK(stream.finish() == "");
}

TEST_CASE("windows of the protocols") {
  const auto ranges = [](const EvalProtocol& p, std::int64_t tokens) {
    std::string out;
    for (const auto& w : eval_windows(p, tokens)) out += cat(w.begin, ":", w.score_begin, "-", w.end, " ");
    return out;
  };
  CHECK(ranges({.context = 4, .stride = 4}, 11) == "0:1-5 4:5-9 8:9-11 ");
  CHECK(ranges({.context = 4, .stride = 4}, 9) == "0:1-5 4:5-9 ");
  CHECK(ranges({.context = 4, .stride = 4, .score_from = 0.5}, 11) == "0:3-5 4:7-9 ");
  CHECK(ranges({.context = 4, .stride = 4, .score_from = 0.5}, 12) == "0:3-5 4:7-9 8:11-12 ");
  CHECK(ranges({.method = EvalMethod::sliding, .context = 4, .stride = 2}, 11) == "0:1-5 2:5-7 4:7-9 6:9-11 ");
  CHECK(ranges({.method = EvalMethod::sliding, .context = 4, .stride = 3}, 11) == "0:1-5 3:5-8 6:8-11 ");
  CHECK(ranges({.method = EvalMethod::sliding, .context = 4, .stride = 1}, 7) == "0:1-5 1:5-6 2:6-7 ");
  CHECK(ranges({.context = 4, .stride = 4, .max_tokens = 5}, 100) == "0:1-5 4:5-6 ");
  CHECK(ranges({.context = 100, .stride = 100}, 2) == "0:1-2 ");
  CHECK_THROWS_AS(ranges({.context = 4, .stride = 4}, 1), Error);
  CHECK_THROWS_AS(ranges({.context = 4, .stride = 4, .score_from = 0.9}, 3), Error);
}

TEST_CASE("perplexity of a model computed by hand") {
  const auto model = unigram_model(16);
  const std::string text = "the quick\tbrown  fox\n jumps|over the lazy dog|";
  const auto source = bytes_source(text);
  const auto tokenizer = make_byte_tokenizer();
  SelfCommunicator self;
  const double shards = static_cast<double>(text.size() - 1);
  double nll = 0;
  for (std::size_t i = 1; i < text.size(); ++i) nll -= std::log(unigram(text[i] == '|' ? 256 : text[i]));
  for (const auto method : {EvalMethod::chunked, EvalMethod::sliding}) {
    for (const std::int64_t context : {3, 16}) {
      const EvalProtocol p{.method = method, .context = context, .stride = 2, .rows = 3, .position_buckets = 4};
      const Perplexity got = evaluate_perplexity(*model, source, *tokenizer, p, true, self);
      CHECK(got.tokens == 45);
      CHECK(got.nll == Approx(nll).epsilon(1e-6));
      CHECK(got.bytes == 43);  // two separators are no text, the first byte was not predicted
      CHECK(got.words == 8);   // and so its word was not either
      CHECK(got.token_ppl() == Approx(std::exp(nll / shards)).epsilon(1e-6));
      CHECK(got.byte_ppl() == Approx(std::exp(nll / 43)).epsilon(1e-6));
      CHECK(got.word_ppl() == Approx(std::exp(nll / 8)).epsilon(1e-6));
      CHECK(got.bits_per_byte() == Approx(nll / 43 / std::log(2.0)).epsilon(1e-6));
      std::int64_t in_buckets = 0, next = 1;
      for (const auto& bucket : got.positions) {
        CHECK(bucket.from == next);
        next = bucket.to;
        in_buckets += bucket.tokens;
      }
      CHECK(next == context + 1);
      CHECK(in_buckets == got.tokens);
      if (method == EvalMethod::chunked &&
          context == 16) {  // windows of 16, 16 and 13 targets, four positions a bucket
        const std::int64_t counts[] = {12, 12, 12, 9};
        for (std::size_t k = 0; k < 4; ++k) CHECK(got.positions[k].tokens == counts[k]);
      }
    }
  }
  EvalProtocol half{.context = 16, .stride = 16, .score_from = 0.5};
  const Perplexity got = evaluate_perplexity(*model, source, *tokenizer, half, true, self);
  CHECK(got.tokens == 8 + 8 + 5);
  CHECK(got.positions.front().tokens == 0);
}

TEST_CASE("words are runs without white space, also across pieces of characters") {
  const auto tokenizer = make_byte_tokenizer();
  const auto words = [&](const std::string& text) {
    const auto source = bytes_source("|" + text);  // the first token is never scored
    return count_scored_text(source, *tokenizer, eval_windows({.context = 5, .stride = 5}, source.tokens())).words;
  };
  CHECK(words("one") == 1);
  CHECK(words(" one  two\tthree\n") == 3);
  CHECK(words("one|two") == 2);  // a separator ends a word
  CHECK(words("a\xC2\xA0"
              "b") == 2);  // no-break space
  CHECK(words("a\xE2\x80\x83"
              "b\xE3\x80\x80"
              "c") == 3);  // em space, ideographic space
  CHECK(words("\xC2\xA9"
              "a\xE2\x82\xAC") == 1);  // © and € begin like spaces
  CHECK(words("\xE2\x80 x") == 2);     // a broken space is no space
  CHECK(words("\xE2\x80") == 1);
  CHECK(words("   ") == 0);
}

TEST_CASE("words that a part of the text begins") {
  const auto tokenizer = make_byte_tokenizer();
  constexpr std::int32_t kBytes[] = {'a', 'b', ' ', 0xE2, 0x80, 0x83, 0xC2, 0xA0, 0xE1, 256};
  const Philox random{7, 8};
  std::vector<std::int32_t> text;
  for (int i = 0; i < 4000; ++i) text.push_back(kBytes[static_cast<std::size_t>(10 * random.uniform(text.size()))]);
  // Pieces of every length up to 43 tokens, scored and not in turn.
  std::vector<EvalWindow> windows;
  std::vector<char> scored(text.size(), 0);
  for (std::int64_t at = 3, i = 0; at + 50 < 4000; ++i) {
    const std::int64_t end = at + 1 + i % 7;
    windows.push_back({at - 1, at, end});
    std::fill(scored.begin() + at, scored.begin() + end, 1);
    at = end + i % 44;
  }
  // From each place by itself: a special token, a space, or a byte of a word.
  const auto space_at = [&](std::size_t i) -> std::size_t {
    if (text[i] == ' ' || text[i] == 256) return 1;
    if (i + 1 < text.size() && text[i] == 0xC2 && text[i + 1] == 0xA0) return 2;
    const bool wide = i + 2 < text.size() && text[i] == 0xE2 && text[i + 1] == 0x80;
    return wide && (text[i + 2] == 0x80 || text[i + 2] == 0x83) ? 3 : 0;
  };
  std::int64_t words = 0, bytes = 0;
  bool in_word = false;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t space = space_at(i);
    if (space == 0 && !in_word && scored[i] != 0) ++words;
    in_word = space == 0;
    i += std::max<std::size_t>(space, 1);
  }
  for (std::size_t i = 0; i < text.size(); ++i) bytes += scored[i] != 0 && text[i] != 256;
  const TextCounts got = count_scored_text(MemoryTokens("text", text), *tokenizer, windows);
  CHECK(got.words == words);
  CHECK(got.bytes == bytes);
}

TEST_CASE("sliding with stride = context is chunked, and ranks do not matter") {
  ModelConfig config = tiny_model(Arch::llama, 32);
  config.attention.kinds["sk"] = {.type = AttentionKind::sparsek, .window = 4, .k = 4};
  config.attention.pattern = {"sk"};
  config.resolve(257, 32);
  const Decoder model(config, {.compute = DType::f32, .seed = 3, .recompute = {}});
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>('a' + (i * i) % 23);
  const auto source = bytes_source(text, {0, 50, 51, 200});
  const auto tokenizer = make_byte_tokenizer();
  SelfCommunicator self;
  const EvalProtocol chunked{.context = 32, .stride = 32, .rows = 2, .position_buckets = 8};
  EvalProtocol sliding = chunked;
  sliding.method = EvalMethod::sliding;
  const Perplexity a = evaluate_perplexity(model, source, *tokenizer, chunked, true, self);
  const Perplexity b = evaluate_perplexity(model, source, *tokenizer, sliding, true, self);
  CHECK(a.nll == b.nll);
  CHECK(a.tokens == 299);
  sliding.stride = 8;  // more context can only be seen with document masks off or inside the long documents
  CHECK(evaluate_perplexity(model, source, *tokenizer, sliding, true, self).nll != a.nll);
  CHECK(evaluate_perplexity(model, source, *tokenizer, chunked, false, self).nll != a.nll);

  const auto shared = std::make_shared<MemoryTokens>(source);
  const ValidationSet set(shared, 32, 2, true);
  const double alone = validation_loss(model, set, self);
  CHECK(alone == Approx(a.nll / 299).epsilon(1e-12));
  for (const int ranks : {2, 3, 7}) {
    std::vector<double> loss(static_cast<std::size_t>(ranks)), nll(loss.size());
    testing::run_ranks(ranks, [&](Communicator& comm) {
      const auto r = static_cast<std::size_t>(comm.rank());
      loss[r] = validation_loss(model, set, comm);
      nll[r] = evaluate_perplexity(model, source, *tokenizer, chunked, true, comm).nll;
    });
    for (const double x : loss) CHECK(x == alone);
    for (const double x : nll) CHECK(x == a.nll);
  }
}

TEST_CASE("generation is a function of prompt and seed") {
  const auto model = unigram_model(64);
  const auto tokenizer = make_byte_tokenizer();
  TextGeneration options{.max_new_tokens = 40, .sampling = {}, .seed = 5, .stream = 0};
  std::string streamed;
  const auto out = generate_text(*model, *tokenizer, "ab", options, [&](std::string_view piece) {
    streamed += piece;
    return true;
  });
  CHECK(streamed == out.text);
  CHECK(out.prompt_ids == std::vector<std::int32_t>{'a', 'b'});
  CHECK((out.new_ids.size() == 40 || out.new_ids.size() < 40));
  CHECK(generate_text(*model, *tokenizer, "ab", options, {}).new_ids == out.new_ids);
  options.seed = 6;
  CHECK(generate_text(*model, *tokenizer, "ab", options, {}).new_ids != out.new_ids);
  options.max_new_tokens = 63;  // 64 learned positions: the last new token is never read
  CHECK_NOTHROW(generate_text(*model, *tokenizer, "ab", options, {}));
  options.sampling.temperature = 0;
  CHECK(generate_text(*model, *tokenizer, "ab", options, {}).new_ids ==
        std::vector<std::int32_t>(63, 6));  // the first of the likeliest
  options.max_new_tokens = 64;
  CHECK_THROWS_AS(generate_text(*model, *tokenizer, "ab", options, {}), Error);
  int calls = 0;
  options.max_new_tokens = 30;
  const auto stopped = generate_text(*model, *tokenizer, "", options, [&](std::string_view) { return ++calls < 3; });
  CHECK(stopped.new_ids.size() == 3);
  CHECK(stopped.prompt_ids == std::vector<std::int32_t>{256});  // an empty prompt starts like a document
}

TEST_CASE("a greedy text is held against one forward over all of it") {
  const auto model = unigram_model(64);
  const auto tokenizer = make_byte_tokenizer();
  TextGeneration options{.max_new_tokens = 40, .sampling = {.temperature = 0}, .seed = 5, .stream = 0};
  auto out = generate_text(*model, *tokenizer, "ab", options, {});
  const std::int64_t vocab = tokenizer->vocab_size();
  const Verification right = verify_greedy(*model, out.prompt_ids, out.new_ids, vocab);
  CHECK(right.passed());
  CHECK(right.checked == 40);
  CHECK(right.excused == 0);
  out.new_ids[17] = 'b';
  const Verification wrong = verify_greedy(*model, out.prompt_ids, out.new_ids, vocab);
  CHECK_FALSE(wrong.passed());
  CHECK(wrong.first_wrong == 17);
  CHECK(wrong.wrong == 1);
  CHECK(verify_greedy(*model, out.prompt_ids, {}, vocab).checked == 0);
}

TEST_CASE("comparisons of metrics") {
  const auto value = [](const std::string& name) {
    if (name == "token_ppl") return 30.5;
    if (name == "sk-2.wiki.token_ppl") return 10.0;
    if (name == "512k.loss") return 2.0;
    fail(Exit::config, "test", "unknown ", name);
  };
  const auto is = [&](const char* text) { return evaluate_comparison(text, value); };
  CHECK(is("token_ppl > 30"));
  CHECK_FALSE(is("token_ppl>31"));
  CHECK(is("token_ppl <= 30.5"));
  CHECK(is("token_ppl != 30"));
  CHECK(is("sk-2.wiki.token_ppl > 1.05 * 9"));
  CHECK(is("2 + 3 * 4 == 14"));
  CHECK(is("(2 + 3) * 4 - 1 == 19"));
  CHECK(is("-2 * -(1 + 1) >= 4"));
  CHECK(is("8 / 4 / 2 == 1"));
  CHECK(is("512k.loss < 2.1"));
  CHECK(is("1e3 == 1000"));
  for (const char* bad : {"", "token_ppl", "token_ppl >", "> 3", "(1 > 2", "1 > 2 > 3", "1 = 2", "1 > 2 )", "a b > 1",
                          "nothing > 1", "1 >> 2"})
    CHECK_THROWS_AS(is(bad), Error);
  CHECK_THROWS_AS(is((std::string(200, '(') + "1" + std::string(200, ')') + " > 0").c_str()), Error);
}
