// Protocols of an evaluation against brute force: each target's loss from the logits of exactly the tokens it sees.
#include <algorithm>
#include <cmath>
#include <map>

#include "core/rng.h"
#include "dist/thread_communicator.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/gpu.h"
#include "train/eval_config.h"
#include "train/eval_report.h"
#include "train/perplexity.h"
#include "train/recall.h"

using namespace sieve;
using sieve::test::error_text;

namespace {

ModelConfig sparse_model(bool document_mask) {
  ModelConfig c;
  c.arch = Arch::llama;
  c.n_layers = 2;
  c.d_model = 32;
  c.n_heads = 2;
  c.attention.kinds["sk"] = {.type = AttentionKind::sparsek, .window = 4, .k = 4};
  c.attention.pattern = {"sk"};
  c.attention.document_mask = document_mask;
  c.resolve(257, 64);
  return c;
}

// Documents of 1, 40, 1, 2, 70, 3 and 58 tokens over a small alphabet: bigrams repeat.
struct Text {
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> starts;
  MemoryTokens source() const { return MemoryTokens("text", ids, starts); }
  std::size_t document(std::int64_t t) const {
    return static_cast<std::size_t>(std::upper_bound(starts.begin(), starts.end(), t) - starts.begin() - 1);
  }
  std::int64_t end(std::size_t d) const {
    return d + 1 < starts.size() ? starts[d + 1] : static_cast<std::int64_t>(ids.size());
  }
};

Text small_text() {
  Text text;
  const Philox random{3, 4};
  for (const int length : {1, 40, 1, 2, 70, 3, 58}) {
    text.starts.push_back(static_cast<std::int64_t>(text.ids.size()));
    for (int i = 0; i < length; ++i)
      text.ids.push_back(i + 1 == length ? 256 : 'a' + static_cast<int>(5 * random.uniform(text.ids.size())));
  }
  return text;
}

// Loss of token t seen with tokens [from, t): softmax of one row, in double.
double loss_of(const Decoder& model, const Text& text, std::int64_t from, std::int64_t t) {
  Tensor tokens = zeros({1, t - from}, DType::i32);
  std::copy(text.ids.begin() + from, text.ids.begin() + t, tokens.data<std::int32_t>());
  const Tensor logits = model.logits(tokens);
  const float* row = logits.data<float>() + (t - from - 1) * 257;
  double sum = 0;
  for (int v = 0; v < 257; ++v) sum += std::exp(static_cast<double>(row[v]));
  return std::log(sum) - static_cast<double>(row[text.ids[static_cast<std::size_t>(t)]]);
}

// Distance to the last occurrence of target t's bigram in [from, t), 0 without one: by trying all.
std::int64_t distance_of(const Text& text, std::int64_t from, std::int64_t t) {
  const auto id = [&](std::int64_t i) { return text.ids[static_cast<std::size_t>(i)]; };
  for (std::int64_t s = t - 1; s - 1 >= from; --s) {
    if (id(s - 1) == id(t - 1) && id(s) == id(t)) return t - s;
  }
  return 0;
}

struct Expected {
  std::int64_t target, from, visible;  // the window's first token, and the first that the target sees
};

const std::vector<std::int64_t> kEdges{2, 5, 12};

// All sums of an evaluation against those over a list of targets.
void check_sums(const Decoder& model, const Text& text, const std::vector<Expected>& targets, const EvalProtocol& p,
                const Perplexity& got) {
  double nll = 0;
  std::map<std::size_t, LossSum> documents;
  std::map<std::int64_t, LossSum> contexts;
  std::vector<LossSum> recall(5);
  std::map<std::size_t, std::vector<LossSum>> document_recall;
  for (const auto& [t, from, visible] : targets) {
    const double loss = loss_of(model, text, visible, t);
    nll += loss;
    documents[text.document(t)].add(loss);
    contexts[t - from].add(loss);
    const std::int64_t distance = distance_of(text, visible, t);
    const std::size_t bucket = distance == 0 ? 4 : distance <= 2 ? 0 : distance <= 5 ? 1 : distance <= 12 ? 2 : 3;
    recall[bucket].add(loss);
    document_recall[text.document(t)].resize(5);
    document_recall[text.document(t)][bucket].add(loss);
  }
  CHECK(got.tokens == static_cast<std::int64_t>(targets.size()));
  CHECK(got.nll == Approx(nll).epsilon(1e-6));
  std::int64_t next = 1;
  for (const PositionBucket& b : got.positions) {
    INFO("positions [" << b.from << ", " << b.to << ")");
    CHECK(b.from == next);
    next = b.to;
    LossSum sum;
    for (std::int64_t c = b.from; c < b.to; ++c) {
      sum.tokens += contexts[c].tokens;
      sum.nll += contexts[c].nll;
    }
    CHECK(b.tokens == sum.tokens);
    CHECK(b.nll == Approx(sum.nll).epsilon(1e-6));
  }
  CHECK(next == p.context + 1);
  REQUIRE(got.recall.size() == 5);
  for (std::size_t b = 0; b < 5; ++b) {
    INFO("recall bucket " << b);
    CHECK(got.recall[b].tokens == recall[b].tokens);
    CHECK(got.recall[b].nll == Approx(recall[b].nll).epsilon(1e-6));
  }
  REQUIRE(got.documents.size() == (p.by_document() ? documents.size() : 0));
  for (const DocumentLoss& d : got.documents) {
    const auto index = static_cast<std::size_t>(d.index);
    INFO("document " << d.index);
    CHECK(d.tokens == documents[index].tokens);
    CHECK(d.nll == Approx(documents[index].nll).epsilon(1e-6));
    CHECK(d.bytes <= d.tokens);
    for (std::size_t b = 0; b < 5; ++b) {
      CHECK(d.recall[b].tokens == document_recall[index][b].tokens);
      CHECK(d.recall[b].nll == Approx(document_recall[index][b].nll).epsilon(1e-6));
    }
  }
}

void check_protocol(const Text& text, const EvalProtocol& p, bool document_mask, const std::vector<Expected>& targets) {
  INFO(p.text() << ", document mask " << document_mask);
  const Decoder model(sparse_model(document_mask), {.compute = DType::f32, .seed = 5, .recompute = {}});
  const auto tokenizer = make_byte_tokenizer();
  SelfCommunicator self;
  const Perplexity alone = evaluate_perplexity(model, text.source(), *tokenizer, p, document_mask, self);
  check_sums(model, text, targets, p, alone);
  std::vector<Perplexity> ranks(3);
  testing::run_ranks(3, [&](Communicator& comm) {
    ranks[static_cast<std::size_t>(comm.rank())] =
        evaluate_perplexity(model, text.source(), *tokenizer, p, document_mask, comm);
  });
  for (const Perplexity& got : ranks) {
    const auto text_of = [&](const Perplexity& value) { return json_text(result_json({"m", "d", p, value, nullptr})); };
    CHECK(text_of(got) == text_of(alone));  // doubles are written so that they read back as they are
  }
}

EvalProtocol protocol(EvalMethod method, std::int64_t context) {
  EvalProtocol p{.method = method, .context = context, .stride = context};
  p.rows = 3;
  p.position_buckets = 4;
  p.recall = kEdges;
  return p;
}

}  // namespace

TEST_CASE("windows over the whole text with and without a document mask") {
  const Text text = small_text();
  for (const bool mask : {false, true}) {
    std::vector<Expected> targets;
    for (std::int64_t t = 1; t < static_cast<std::int64_t>(text.ids.size()); ++t) {
      const std::int64_t from = (t - 1) / 16 * 16, start = text.starts[text.document(t - 1)];
      targets.push_back({t, from, mask ? std::max(from, start) : from});
    }
    check_protocol(text, protocol(EvalMethod::chunked, 16), mask, targets);
  }
}

TEST_CASE("windows that end with their document") {
  const Text text = small_text();
  std::vector<Expected> chunked, sliding, half;
  for (std::size_t d = 0; d < text.starts.size(); ++d) {
    for (std::int64_t t = text.starts[d] + 1; t < text.end(d); ++t) {
      const std::int64_t start = text.starts[d], n = t - 1 - start;
      const std::int64_t window = start + n / 16 * 16;
      chunked.push_back({t, window, window});
      if (t - 1 - window >= 8) half.push_back({t, window, window});
      // The first window scores 16 targets; then each of the windows at 4, 8, ... its last 4.
      const std::int64_t slid = start + (n < 16 ? 0 : (n - 16) / 4 * 4 + 4);
      sliding.push_back({t, slid, slid});
    }
  }
  EvalProtocol p = protocol(EvalMethod::chunked, 16);
  p.per_document = true;
  for (const bool mask : {false, true}) check_protocol(text, p, mask, chunked);
  p.position_scale = PositionScale::log2;
  check_protocol(text, p, true, chunked);
  p.score_from = 0.5;
  check_protocol(text, p, false, half);
  p = protocol(EvalMethod::sliding, 16);
  p.per_document = true;
  p.stride = 4;
  check_protocol(text, p, true, sliding);
}

TEST_CASE("a tail's targets are the same for every context") {
  const Text text = small_text();
  for (const std::int64_t context : {5, 8, 19, 20}) {
    std::vector<Expected> targets;
    for (std::size_t d = 0; d < text.starts.size(); ++d) {
      // Spans of 20 targets, after the document's first token; the last 5 of each, seen by a window that ends there.
      for (std::int64_t end = text.starts[d] + 21; end <= text.end(d); end += 20) {
        for (std::int64_t t = end - 5; t < end; ++t) targets.push_back({t, end - 1 - context, end - 1 - context});
      }
    }
    CHECK(targets.size() == 5 * (1 + 3 + 2));  // documents of 40, 70 and 58 tokens
    EvalProtocol p = protocol(EvalMethod::tail, context);
    p.tail = 5;
    p.span = 20;
    p.position_scale = PositionScale::log2;
    check_protocol(text, p, true, targets);
  }
}

TEST_CASE("with context = span a tail is chunked with a part unscored") {
  const Text text = small_text();
  const Decoder model(sparse_model(true), {.compute = DType::f32, .seed = 5, .recompute = {}});
  const auto tokenizer = make_byte_tokenizer();
  SelfCommunicator self;
  EvalProtocol tail = protocol(EvalMethod::tail, 8), chunked = protocol(EvalMethod::chunked, 8);
  tail.tail = 4;
  tail.span = 8;
  chunked.per_document = true;
  chunked.score_from = 0.5;
  const Text whole{{text.ids.begin(), text.ids.begin() + 41}, {0}};  // 5 spans of 8 and the first token
  CHECK(evaluate_perplexity(model, whole.source(), *tokenizer, tail, true, self).nll ==
        evaluate_perplexity(model, whole.source(), *tokenizer, chunked, true, self).nll);
}

TEST_CASE("GPU: an evaluation says what it says on a CPU", "[gpu]") {
  SIEVE_NEEDS_GPU();
  const Text text = small_text();
  const auto tokenizer = make_byte_tokenizer();
  SelfCommunicator self;
  const Decoder here(sparse_model(true), {.compute = DType::f32, .seed = 5, .recompute = {}});
  const Decoder there(sparse_model(true), {.compute = DType::f32, .seed = 5, .recompute = {}});
  place_parameters(there.parameters(), sieve::test::gpu_stream());
  EvalProtocol tail = protocol(EvalMethod::tail, 8), apart = protocol(EvalMethod::chunked, 16);
  tail.tail = 5;
  tail.span = 20;
  apart.per_document = true;
  for (const EvalProtocol& p : {protocol(EvalMethod::chunked, 16), apart, tail}) {
    INFO(p.text());
    const Perplexity cpu = evaluate_perplexity(here, text.source(), *tokenizer, p, true, self);
    const Perplexity gpu = evaluate_perplexity(there, text.source(), *tokenizer, p, true, self);
    CHECK(gpu.nll == Approx(cpu.nll).epsilon(1e-4));
    for (std::size_t b = 0; b < cpu.recall.size(); ++b) {
      CHECK(gpu.recall[b].tokens == cpu.recall[b].tokens);
      CHECK(gpu.recall[b].nll == Approx(cpu.recall[b].nll).epsilon(1e-4));
    }
    REQUIRE(gpu.documents.size() == cpu.documents.size());
    for (std::size_t d = 0; d < cpu.documents.size(); ++d)
      CHECK(gpu.documents[d].nll == Approx(cpu.documents[d].nll).epsilon(1e-4));
  }
}

TEST_CASE("the bytes of documents are those of the text") {
  const Text text = small_text();
  const Decoder model(sparse_model(true), {.compute = DType::f32, .seed = 5, .recompute = {}});
  const auto tokenizer = make_byte_tokenizer();
  SelfCommunicator self;
  EvalProtocol p = protocol(EvalMethod::chunked, 16);
  p.per_document = true;
  const Perplexity got = evaluate_perplexity(model, text.source(), *tokenizer, p, true, self);
  std::vector<std::int64_t> index, bytes;
  for (const DocumentLoss& d : got.documents) {
    index.push_back(d.index);
    bytes.push_back(d.bytes);
  }
  CHECK(index == std::vector<std::int64_t>{1, 3, 4, 5, 6});     // those of one token have nothing to predict
  CHECK(bytes == std::vector<std::int64_t>{38, 0, 68, 1, 56});  // neither the first token nor the separator
  CHECK(got.bytes == 38 + 68 + 1 + 56);
  p.max_tokens = 43;  // the text ends with the first token of the document of 2
  CHECK(evaluate_perplexity(model, text.source(), *tokenizer, p, true, self).documents.size() == 2);
  p.max_tokens = 42;
  CHECK(evaluate_perplexity(model, text.source(), *tokenizer, p, true, self).documents.size() == 1);
}

TEST_CASE("windows by document at their edges") {
  const auto ranges = [](const EvalProtocol& p, std::int64_t tokens, const std::vector<std::int64_t>& starts) {
    std::string out;
    for (const auto& w : eval_windows(p, tokens, starts)) out += cat(w.begin, ":", w.score_begin, "-", w.end, " ");
    return out;
  };
  EvalProtocol p{.context = 4, .stride = 4, .per_document = true};
  CHECK(ranges(p, 12, {0, 1, 6, 7}) == "1:2-6 7:8-12 ");
  CHECK(ranges(p, 12, {0, 2, 11}) == "0:1-2 2:3-7 6:7-11 ");
  p.max_tokens = 8;
  CHECK(ranges(p, 12, {0, 2, 11}) == "0:1-2 2:3-7 6:7-9 ");
  CHECK_THROWS_AS(ranges(p, 3, {0, 1, 2}), Error);
  EvalProtocol tail{.method = EvalMethod::tail, .context = 4, .tail = 2, .span = 6};
  tail.stride = 4;
  CHECK(ranges(tail, 20, {0}) == "2:5-7 8:11-13 14:17-19 ");
  CHECK(ranges(tail, 20, {0, 8}) == "2:5-7 10:13-15 ");
  CHECK(ranges(tail, 7, {0}) == "2:5-7 ");
  const std::string short_text = error_text([&] { ranges(tail, 6, {0}); });
  INFO(short_text);
  CHECK(short_text.find("[eval.span] no document has the 7 tokens") != std::string::npos);
}

TEST_CASE("distances of repeated bigrams") {
  const std::vector<std::int32_t> text{1, 2, 1, 2, 2, 2, 3, 1, 2};
  const std::vector<float> losses(8);
  RepeatFinder plain({});
  const auto found = plain.find({{10, 11, 19}, text, losses});
  CHECK(std::vector<std::int64_t>(found.begin(), found.end()) == std::vector<std::int64_t>{0, 0, 2, 0, 1, 0, 0, 5});
  const std::vector<std::int64_t> starts{0, 13};  // the last (1, 2) began in the document before
  RepeatFinder masked(starts);
  const auto own = masked.find({{10, 15, 19}, text, std::span(losses).subspan(4)});
  CHECK(std::vector<std::int64_t>(own.begin(), own.end()) == std::vector<std::int64_t>{1, 0, 0, 0});
  const std::size_t buckets[] = {4, 0, 0, 1, 1, 2, 2, 3};
  const std::int64_t distances[] = {0, 1, 2, 3, 5, 6, 12, 13};
  for (std::size_t i = 0; i < 8; ++i) CHECK(recall_bucket(kEdges, distances[i]) == buckets[i]);
}

TEST_CASE("options of an evaluation that do not fit are named") {
  const auto load = [](const std::vector<std::string>& options) {
    ConfigTree tree;
    tree.overlay({"eval.checkpoints=run"});
    tree.overlay(options);
    EvalFile file;
    tree.bind(file);
    resolve_eval(file.eval, tree);
    return file.eval;
  };
  const auto refused = [&](const std::vector<std::string>& options, const std::string& key, const std::string& why) {
    const std::string message = error_text([&] { load(options); });
    INFO(key << ": " << why << ", got: " << message);
    CHECK(message.find("error: " + key + ": ") != std::string::npos);
    CHECK(message.find(why) != std::string::npos);
  };
  refused({"eval.method=tail", "eval.tail=600", "eval.span=512"}, "eval.tail", "more than eval.span");
  refused({"eval.method=tail", "eval.span=4096", "eval.contexts=[512, 8192]"}, "eval.contexts", "8192");
  refused({"eval.method=tail", "eval.contexts=[256]"}, "eval.contexts", "shorter than eval.tail");
  refused({"eval.method=tail", "eval.per_document=false"}, "eval.per_document", "no effect");
  refused({"eval.tail=64"}, "eval.tail", "eval.method=chunked");
  refused({"eval.span=64", "eval.method=sliding"}, "eval.span", "eval.method=tail");
  refused({"eval.recall=[64, 64]"}, "eval.recall", "ascend");
  refused({"eval.recall=[0, 64]"}, "eval.recall", "at least 1");
  refused({"eval.position_scale=log2", "eval.position_buckets=4"}, "eval.position_buckets", "linear");
  CHECK(load({"eval.per_document=true", "eval.method=tail", "eval.recall=[1, 2]"}).recall.size() == 2);
  const EvalRunGroup tail = load({"eval.method=tail", "eval.tail=512", "eval.span=3000"});
  CHECK(tail_contexts(tail) == std::vector<std::int64_t>{512, 1024, 2048, 3000});
}

TEST_CASE("protocols take from the group what they do not give") {
  const auto load = [](const std::string& group) {
    ConfigTree tree;
    tree.load_text("eval:\n  checkpoints: [run]\n" + group, "eval.yaml");
    EvalFile file;
    tree.bind(file);
    resolve_eval(file.eval, tree);
    return file.eval;
  };
  const auto refused = [&](const std::string& group, const std::vector<std::string>& parts) {
    const std::string message = error_text([&] { load(group); });
    INFO("got: " << message);
    for (const std::string& part : parts) {
      INFO(part);
      CHECK(message.find(part) != std::string::npos);
    }
  };
  // Every key of the group, each with a value of its own.
  const EvalRunGroup all = load(
      "  method: sliding\n  per_document: true\n  contexts: [6]\n  stride: 2\n  batch: 3\n  position_buckets: 5\n"
      "  recall: [7]\n  max_tokens: 8\n  score_from: 0.5\n  tail: 4\n  span: 9\n  position_scale: linear\n  "
      "protocols:\n"
      "    - {name: moved}\n    - {name: parts, method: chunked, batch: 1}\n    - {name: ends, method: tail, recall: "
      "[]}\n"
      "    - {name: log, position_scale: log2}\n");
  const auto texts = [](EvalSettings settings) { return flatten_config(settings); };
  REQUIRE(all.evaluations().size() == 4);
  CHECK(texts(all.protocols[0]) == texts(all));
  EvalSettings changed = all;
  changed.method = EvalMethod::chunked;
  changed.batch = 1;
  CHECK(texts(all.protocols[1]) == texts(changed));
  changed = all;
  changed.method = EvalMethod::tail;
  changed.recall.clear();
  CHECK(texts(all.protocols[2]) == texts(changed));
  refused("  protocols: [{method: tail}]\n", {"eval.yaml:3:15: error: eval.protocols[0].name", "does not name"});
  refused("  protocols: [{name: a b}]\n", {"protocols[0].name", "\"a b\""});
  refused("  protocols: [{name: a.}]\n", {"protocols[0].name", "\"a.\""});
  refused("  protocols: [{name: a}, {name: b}, {name: a}]\n", {"protocols[2].name", "a names eval.protocols[0] too"});
  refused("  protocols: [{name: a, stride: 1}]\n", {"eval.protocols[0].stride", "eval.method=chunked"});
  refused("  protocols: [{name: a, method: tail, tail: 4, span: 2}]\n",
          {"eval.protocols[0].tail", "protocols[0].span, 2"});
  refused("  protocols: [{name: a, contexts: [0]}]\n", {"eval.protocols[0].contexts", "0 is not"});
  refused("  recall: [3, 3]\n  protocols: [{name: a}, {name: b}]\n",
          {"eval.yaml:3:3: error: eval.recall", "3 follows 3"});
  refused("  stride: 2\n  protocols: [{name: a}, {name: b, method: sliding, stride: 1}]\n",
          {"eval.yaml:3:3: error: eval.stride", "on any of eval.protocols"});
  refused("  batch: 2\n  protocols: [{name: a, batch: 1}]\n", {"eval.batch", "on any of eval.protocols"});
  refused("  protocols: [{name: a, checkpoints: [b]}]\n", {"eval.protocols[0].checkpoints", "unknown key"});
  CHECK(load("  stride: 2\n  protocols: [{name: a}, {name: b, method: sliding}]\n").protocols[1].stride == 2);
  CHECK(load("  stride: 0.25\n  method: sliding\n").evaluations().front().name.empty());
}
