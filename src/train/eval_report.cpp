#include "train/eval_report.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "train/format.h"

namespace sieve {
namespace {

std::string_view method_name(const EvalProtocol& p) { return kEvalMethodNames[static_cast<std::size_t>(p.method)]; }

Json number_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json sum_json(const LossSum& sum) { return {{"tokens", sum.tokens}, {"nll", number_or_null(sum.nll)}}; }

// Of targets that a bucket [from, to) holds; a bound of 0 is none.
Json bucket_json(const LossSum& sum, std::int64_t from, std::int64_t to) {
  Json json = sum_json(sum);
  json["from"] = from > 0 ? Json(from) : Json(nullptr);
  json["to"] = to > 0 ? Json(to) : Json(nullptr);
  json["loss"] = sum.tokens > 0 ? number_or_null(sum.nll / static_cast<double>(sum.tokens)) : Json(nullptr);
  return json;
}

Json protocol_json(const EvalProtocol& p) {
  Json json{{"method", method_name(p)}, {"context", p.context}, {"per_document", p.by_document()}, {"text", p.text()}};
  if (p.method == EvalMethod::sliding) json["stride"] = p.stride;
  if (p.method == EvalMethod::chunked) json["score_from"] = p.score_from;
  if (p.method == EvalMethod::tail) {
    json["tail"] = p.tail;
    json["span"] = p.span;
  }
  if (!p.recall.empty()) json["recall"] = p.recall;
  return json;
}

Json documents_json(const EvalResult& r) {
  Json documents = Json::array();
  for (const DocumentLoss& d : r.value.documents) {
    Json json = sum_json(d);
    json["index"] = d.index;
    json["bytes"] = d.bytes;
    if (r.files && !r.files->empty()) json["file"] = r.files->at(static_cast<std::size_t>(d.index));
    for (const LossSum& sum : d.recall) json["recall"].push_back(sum_json(sum));
    documents.push_back(std::move(json));
  }
  return documents;
}

std::string recall_text(const Perplexity& value) {
  std::string line = "  loss by distance of the bigram's last occurrence";
  for (const RecallBucket& b : value.recall) {
    std::string range = "none";
    if (b.from > 0) range = b.to > 0 ? cat(b.from, "-", b.to - 1) : cat("> ", b.from - 1);
    line += cat(" · ", range, ": ");
    if (b.tokens == 0) {
      line += "no target";
      continue;
    }
    line += cat(format_fixed(b.nll / static_cast<double>(b.tokens), 4), " (",
                format_fixed(100.0 * static_cast<double>(b.tokens) / static_cast<double>(value.tokens), 1), " %)");
  }
  return line;
}

// "a.b.metric" -> {"a.b.", "metric"}
std::pair<std::string, std::string> split_metric(const std::string& name) {
  const std::size_t dot = name.rfind('.');
  const std::size_t metric = dot == std::string::npos ? 0 : dot + 1;
  return {name.substr(0, metric), name.substr(metric)};
}

// Is the text a row of these labels, each with a point behind it? Labels may hold points themselves.
bool is_row_of(std::string_view text, const std::vector<std::string>& labels) {
  return text.empty() || std::any_of(labels.begin(), labels.end(), [&](const std::string& label) {
           return text.size() > label.size() && text.starts_with(label) && text[label.size()] == '.' &&
                  is_row_of(text.substr(label.size() + 1), labels);
         });
}

}  // namespace

std::string EvalResult::file_name() const {
  if (!protocol_name.empty()) return cat(data, "-", protocol_name, "-", protocol.context, ".json");
  const bool apart = protocol.method != EvalMethod::tail && protocol.per_document;  // a tail is always by document
  return cat(data, "-", method_name(protocol), "-", protocol.context, apart ? "-per-document" : "", ".json");
}

std::string result_text(const EvalResult& r, bool named) {
  std::string text = named ? cat(r.model, " · ", r.data, " · ") : "";
  if (named && !r.protocol_name.empty()) text += r.protocol_name + " · ";
  text += cat("tokens ", format_grouped(r.value.tokens), " · token-ppl ", format_fixed(r.value.token_ppl(), 3),
              " · word-ppl ", format_fixed(r.value.word_ppl(), 2), " · byte-ppl ", format_fixed(r.value.byte_ppl(), 3),
              " · bits/byte ", format_fixed(r.value.bits_per_byte(), 4), "   (", r.protocol.text(), ")");
  return r.value.recall.empty() ? text : text + '\n' + recall_text(r.value);
}

Json result_json(const EvalResult& r) {
  Json positions = Json::array();
  for (const PositionBucket& b : r.value.positions) positions.push_back(bucket_json(b, b.from, b.to));
  Json json{{"model", r.model}, {"data", r.data}, {"protocol", protocol_json(r.protocol)}, {"positions", positions}};
  if (!r.protocol_name.empty()) json["protocol_name"] = r.protocol_name;
  for (const char* count : {"tokens", "words", "bytes"}) json[count] = static_cast<std::int64_t>(r.value.metric(count));
  for (const char* metric : {"nll", "loss", "token_ppl", "word_ppl", "byte_ppl", "bits_per_byte"})
    json[metric] = number_or_null(r.value.metric(metric));
  for (const RecallBucket& b : r.value.recall) json["recall"].push_back(bucket_json(b, b.from, b.to));
  if (r.protocol.by_document()) json["documents"] = documents_json(r);
  return json;
}

double named_metric(const std::string& name, const std::vector<EvalResult>& results) {
  const auto [asked, metric] = split_metric(name);
  const EvalResult* found = nullptr;
  std::string known;
  for (const EvalResult& r : results) {
    std::vector<std::string> labels{r.model, r.data, cat("ctx", r.protocol.context)};
    if (!r.protocol_name.empty()) labels.insert(labels.begin() + 2, r.protocol_name);
    known += "\n  ";
    for (const std::string& label : labels) known += (&label == labels.data() ? "" : ".") + label;
    if (!is_row_of(asked, labels)) continue;
    if (found != nullptr) fail(Exit::config, "fail-if", "\"", name, "\" fits several results; name one of:", known);
    found = &r;
  }
  if (found == nullptr) fail(Exit::config, "fail-if", "\"", name, "\" fits no result; there are:", known);
  return found->value.metric(metric);
}

void check_metric_name(const std::string& name) { Perplexity{}.metric(split_metric(name).second); }

}  // namespace sieve
