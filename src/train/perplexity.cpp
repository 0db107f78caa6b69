#include "train/perplexity.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <optional>

#include "core/error.h"
#include "train/recall.h"
#include "train/scored_text.h"
#include "train/scored_windows.h"

namespace sieve {
namespace {

// What a target's place in the buckets follows from.
struct Target {
  std::int64_t context = 0;  // tokens of the window before it
  std::int64_t bytes = 0;
  std::size_t recall = 0;  // bucket
  double loss = 0;
};

std::vector<PositionBucket> position_buckets(const EvalProtocol& p) {
  std::vector<PositionBucket> buckets;
  if (p.position_scale == PositionScale::log2) {
    for (std::int64_t from = 1; from <= p.context; from *= 2)
      buckets.push_back({{}, from, std::min(2 * from, p.context + 1)});
    return buckets;
  }
  const std::int64_t count = std::min(p.position_buckets, p.context);
  // Positions at with at * count / context == k, seen as tokens of context: at + 1.
  const auto first = [&](std::int64_t k) { return (k * p.context + count - 1) / count + 1; };
  for (std::int64_t k = 0; k < count; ++k) buckets.push_back({{}, first(k), first(k + 1)});
  return buckets;
}

std::size_t position_bucket(const EvalProtocol& p, std::size_t count, std::int64_t context) {
  if (p.position_scale == PositionScale::log2)
    return static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(context)) - 1);
  return static_cast<std::size_t>((context - 1) * static_cast<std::int64_t>(count) / p.context);
}

std::vector<RecallBucket> recall_buckets(const std::vector<std::int64_t>& edges) {
  std::vector<RecallBucket> buckets;
  if (edges.empty()) return buckets;
  std::int64_t from = 1;
  for (const std::int64_t edge : edges) {
    buckets.push_back({{}, from, edge + 1});
    from = edge + 1;
  }
  buckets.push_back({{}, from, 0});
  buckets.push_back({{}, 0, 0});
  return buckets;
}

// Every sum of an evaluation, fed with its targets in the text's order.
class Accumulators {
 public:
  explicit Accumulators(const EvalProtocol& protocol) : protocol_(protocol) {
    sums_.positions = position_buckets(protocol);
    sums_.recall = recall_buckets(protocol.recall);
  }

  void begin_document(std::int64_t index) {
    if (!sums_.documents.empty() && sums_.documents.back().index == index) return;
    sums_.documents.push_back({{}, index, 0, std::vector<LossSum>(sums_.recall.size())});
  }

  void add(const Target& target) {
    sums_.add(target.loss);
    sums_.positions[position_bucket(protocol_, sums_.positions.size(), target.context)].add(target.loss);
    if (!sums_.recall.empty()) sums_.recall[target.recall].add(target.loss);
    if (sums_.documents.empty()) return;
    DocumentLoss& document = sums_.documents.back();
    document.add(target.loss);
    document.bytes += target.bytes;
    if (!document.recall.empty()) document.recall[target.recall].add(target.loss);
  }

  Perplexity take() { return std::move(sums_); }

 private:
  const EvalProtocol& protocol_;
  Perplexity sums_;
};

std::vector<std::int64_t> starts_of(const TokenSource& source) {
  std::vector<std::int64_t> starts;
  source.document_starts(0, source.tokens(), starts);
  return starts;
}

}  // namespace

Perplexity evaluate_perplexity(const Decoder& model, const TokenSource& source, const Tokenizer& tokenizer,
                               const EvalProtocol& protocol, bool document_mask, Communicator& comm) {
  const Progress::Scope scope(comm.progress(), "evaluation");
  const bool apart = protocol.by_document();
  const std::vector<std::int64_t> starts = apart || document_mask ? starts_of(source) : std::vector<std::int64_t>();
  const std::vector<EvalWindow> windows = eval_windows(protocol, source.tokens(), starts);
  // Windows of one document need no mask.
  const std::span<const std::int64_t> masked = apart ? std::span<const std::int64_t>() : starts;
  const std::vector<std::int32_t> bytes = bytes_per_token(tokenizer);

  Accumulators accumulators(protocol);
  RepeatFinder repeats(masked);
  visit_scored_windows(model, source, windows, protocol.rows, masked, comm, [&](const ScoredWindow& scored) {
    const EvalWindow& w = scored.window;
    if (apart)
      accumulators.begin_document(std::upper_bound(starts.begin(), starts.end(), w.begin) - starts.begin() - 1);
    const bool recall = !protocol.recall.empty();
    const std::span<const std::int64_t> distances = recall ? repeats.find(scored) : std::span<const std::int64_t>();
    for (std::int64_t t = w.score_begin; t < w.end; ++t) {
      const auto i = static_cast<std::size_t>(t - w.score_begin);
      const auto id = static_cast<std::size_t>(scored.text[static_cast<std::size_t>(t - w.begin)]);
      accumulators.add({t - w.begin, bytes.at(id), recall ? recall_bucket(protocol.recall, distances[i]) : 0,
                        static_cast<double>(scored.losses[i])});
    }
  });
  Perplexity result = accumulators.take();
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
