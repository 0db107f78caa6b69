#include "train/perplexity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "core/error.h"

namespace sieve {
namespace {

// Unicode's White_Space characters beyond ASCII, as UTF-8.
constexpr std::string_view kWideSpaces[] = {
    "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81", "\xE2\x80\x82", "\xE2\x80\x83",
    "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86", "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A",
    "\xE2\x80\xA8", "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};

bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f); }

// Words of a byte stream. Characters may be cut between calls, so bytes that may begin a wide space wait for the next
// ones; the word they may start was scored where they were.
class WordCounter {
 public:
  void text(std::string_view bytes, bool scored) {
    for (const char c : bytes) byte(c, scored);
  }
  void boundary() {
    flush_as_word();
    in_word_ = false;
  }
  std::int64_t finish() {
    flush_as_word();
    return words_;
  }

 private:
  void byte(char c, bool scored) {
    pending_ += c;
    if (pending_.size() == 1) pending_scored_ = scored;
    const auto starts = [this](std::string_view space) { return space.substr(0, pending_.size()) == pending_; };
    if (std::find(std::begin(kWideSpaces), std::end(kWideSpaces), pending_) != std::end(kWideSpaces)) {
      in_word_ = false;
      pending_.clear();
    } else if (!std::any_of(std::begin(kWideSpaces), std::end(kWideSpaces), starts)) {
      // Not a wide space: every byte but perhaps the last belongs to a word; the last may begin another character.
      pending_.pop_back();
      flush_as_word();
      plain(c, scored);
    }
  }
  void plain(char c, bool scored) {
    pending_ = c;
    pending_scored_ = scored;
    const auto starts = [this](std::string_view space) { return space.front() == pending_.front(); };
    if (std::any_of(std::begin(kWideSpaces), std::end(kWideSpaces), starts)) return;
    pending_.clear();
    if (is_ascii_space(c)) {
      in_word_ = false;
    } else {
      word(scored);
    }
  }
  void flush_as_word() {
    if (!pending_.empty()) word(pending_scored_);
    pending_.clear();
  }
  void word(bool scored) {
    if (!in_word_ && scored) ++words_;
    in_word_ = true;
  }

  std::string pending_;
  bool pending_scored_ = false, in_word_ = false;
  std::int64_t words_ = 0;
};

// Rows of one forward.
struct EvalBatch {
  TokenBatch tensors;
  std::int64_t T = 0;
};

EvalBatch make_batch(const TokenSource& source, const EvalWindow* windows, std::int64_t rows, bool document_mask) {
  EvalBatch batch;
  for (std::int64_t r = 0; r < rows; ++r) batch.T = std::max(batch.T, windows[r].end - 1 - windows[r].begin);
  const std::int64_t T = batch.T;
  batch.tensors.tokens = zeros({rows, T}, DType::i32);
  batch.tensors.targets = full({rows, T}, -1, DType::i32);
  if (document_mask) batch.tensors.document_starts = zeros({rows, T}, DType::i32);
  std::vector<std::int32_t> text;
  std::vector<std::int64_t> starts;
  for (std::int64_t r = 0; r < rows; ++r) {
    const EvalWindow& w = windows[r];
    text.resize(static_cast<std::size_t>(w.end - w.begin));
    source.read(w.begin, text);
    std::copy(text.begin(), text.end() - 1, batch.tensors.tokens.data<std::int32_t>() + r * T);
    std::int32_t* targets = batch.tensors.targets.data<std::int32_t>() + r * T;
    for (std::int64_t t = w.score_begin; t < w.end; ++t)
      targets[t - 1 - w.begin] = text[static_cast<std::size_t>(t - w.begin)];
    if (!document_mask) continue;
    starts.clear();
    source.document_starts(w.begin, w.end - 1, starts);
    std::int32_t* mask = batch.tensors.document_starts.data<std::int32_t>() + r * T;
    // Before the first start in the window runs a document that began earlier: it counts from the window's own
    // beginning.
    for (std::size_t i = 0; i < starts.size(); ++i) {
      const std::int64_t from = starts[i] - w.begin, to = i + 1 < starts.size() ? starts[i + 1] - w.begin : T;
      std::fill(mask + from, mask + to, static_cast<std::int32_t>(from));
    }
  }
  return batch;
}

// Adds to one row of sums per window: [nll of bucket 0, count of bucket 0, nll of bucket 1, ...].
void score_block(const Decoder& model, const EvalBatch& batch, const EvalProtocol& p, std::int64_t buckets,
                 double* sums) {
  Tensor losses;
  model.loss_sum(batch.tensors, &losses);
  losses = losses.to(Stream{});
  const auto loss = losses.span<float>();
  const auto target = batch.tensors.targets.span<std::int32_t>();
  for (std::size_t i = 0; i < loss.size(); ++i) {
    if (target[i] < 0) continue;
    const std::int64_t row = static_cast<std::int64_t>(i) / batch.T, position = static_cast<std::int64_t>(i) % batch.T;
    double* place = sums + 2 * (row * buckets + position * buckets / p.context);
    place[0] += static_cast<double>(loss[i]);
    place[1] += 1;
  }
}

}  // namespace

std::vector<EvalWindow> eval_windows(const EvalProtocol& p, std::int64_t tokens) {
  require(p.context >= 1 && p.stride >= 1 && p.stride <= p.context, "eval", "context ", p.context, ", stride ",
          p.stride);
  const std::int64_t targets = p.max_tokens > 0 ? std::min(tokens - 1, p.max_tokens) : tokens - 1;
  if (targets < 1) fail(Exit::data, "eval", "the text has ", tokens, " tokens: nothing to predict");
  const std::int64_t stop = targets + 1, step = p.method == EvalMethod::sliding ? p.stride : p.context;
  const auto unscored = static_cast<std::int64_t>(p.score_from * static_cast<double>(p.context));
  std::vector<EvalWindow> windows;
  std::int64_t scored_to = 1;
  for (std::int64_t begin = 0; scored_to < stop; begin += step) {
    EvalWindow w{begin, scored_to, std::min(begin + p.context + 1, stop)};
    if (p.method == EvalMethod::chunked) w.score_begin = std::min(begin + 1 + unscored, w.end);
    scored_to = w.end;
    if (w.score_begin < w.end) windows.push_back(w);
  }
  if (windows.empty())
    fail(Exit::data, "eval", "score_from = ", p.score_from, " leaves nothing to score in ", targets, " targets");
  return windows;
}

TextCounts count_scored_text(const TokenSource& source, const Tokenizer& tokenizer,
                             const std::vector<EvalWindow>& windows) {
  TextCounts counts;
  WordCounter words;
  std::vector<std::int32_t> ids;
  std::int64_t at = 0;
  const auto feed = [&](std::int64_t end, bool scored) {
    constexpr std::int64_t kPiece = 1 << 16;
    while (at < end) {
      ids.resize(static_cast<std::size_t>(std::min(kPiece, end - at)));
      source.read(at, ids);
      at += static_cast<std::int64_t>(ids.size());
      for (const std::int32_t id : ids) {
        if (tokenizer.is_special(id)) {
          words.boundary();
          continue;
        }
        const std::string_view bytes = tokenizer.token_bytes(id);
        if (scored) counts.bytes += static_cast<std::int64_t>(bytes.size());
        words.text(bytes, scored);
      }
    }
  };
  for (const EvalWindow& w : windows) {
    feed(w.score_begin, false);
    feed(w.end, true);
  }
  counts.words = words.finish();
  return counts;
}

Perplexity evaluate_perplexity(const Decoder& model, const TokenSource& source, const Tokenizer& tokenizer,
                               const EvalProtocol& protocol, bool document_mask, Communicator& comm) {
  const NoGrad no_grad;
  const Progress::Scope scope(comm.progress(), "evaluation");
  const auto windows = eval_windows(protocol, source.tokens());
  const auto count = static_cast<std::int64_t>(windows.size());
  const std::int64_t buckets = std::min(protocol.position_buckets, protocol.context);
  // A row of sums per window, filled by one rank, 0 elsewhere: the sum over ranks is exact in any order.
  Tensor sums = zeros({count, 2 * buckets}, DType::f64);
  const std::int64_t blocks = (count + protocol.rows - 1) / protocol.rows;
  for (std::int64_t b = comm.rank(); b < blocks; b += comm.size()) {
    const std::int64_t first = b * protocol.rows, rows = std::min(protocol.rows, count - first);
    const EvalBatch batch = make_batch(source, &windows[static_cast<std::size_t>(first)], rows, document_mask);
    score_block(model, batch, protocol, buckets, sums.data<double>() + first * 2 * buckets);
    comm.progress().beat();
  }
  comm.all_reduce(sums, ReduceOp::sum, "evaluation sums");

  Perplexity result;
  for (std::int64_t k = 0; k < buckets; ++k) {
    // Positions p with p * buckets / context == k, seen as tokens of context: p + 1.
    PositionBucket bucket{(k * protocol.context + buckets - 1) / buckets + 1,
                          ((k + 1) * protocol.context + buckets - 1) / buckets + 1, 0, 0};
    for (std::int64_t w = 0; w < count; ++w) {
      bucket.nll += sums.data<double>()[(w * buckets + k) * 2];
      bucket.tokens += static_cast<std::int64_t>(sums.data<double>()[(w * buckets + k) * 2 + 1]);
    }
    result.nll += bucket.nll;
    result.tokens += bucket.tokens;
    result.positions.push_back(bucket);
  }
  const TextCounts text = count_scored_text(source, tokenizer, windows);
  result.words = text.words;
  result.bytes = text.bytes;
  return result;
}

double Perplexity::token_ppl() const { return std::exp(nll / static_cast<double>(tokens)); }
double Perplexity::word_ppl() const { return words > 0 ? std::exp(nll / static_cast<double>(words)) : std::nan(""); }
double Perplexity::byte_ppl() const { return bytes > 0 ? std::exp(nll / static_cast<double>(bytes)) : std::nan(""); }
double Perplexity::bits_per_byte() const {
  return bytes > 0 ? nll / (static_cast<double>(bytes) * std::numbers::ln2) : std::nan("");
}

double Perplexity::metric(const std::string& name) const {
  if (name == "token_ppl" || name == "ppl") return token_ppl();
  if (name == "word_ppl") return word_ppl();
  if (name == "byte_ppl") return byte_ppl();
  if (name == "bits_per_byte" || name == "bpb") return bits_per_byte();
  if (name == "nll") return nll;
  if (name == "loss") return nll / static_cast<double>(tokens);
  if (name == "tokens") return static_cast<double>(tokens);
  if (name == "words") return static_cast<double>(words);
  if (name == "bytes") return static_cast<double>(bytes);
  fail(Exit::config, "eval", "unknown metric \"", name,
       "\" (token_ppl or ppl, word_ppl, byte_ppl, bits_per_byte or bpb, nll, loss, tokens, words, bytes)");
}

}  // namespace sieve
