// Results of `sieve eval` as people and programs read them. docs/evaluation.md lists the keys of the JSON.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/json.h"
#include "train/perplexity.h"

namespace sieve {

struct EvalResult {
  std::string model, data;
  EvalProtocol protocol;
  Perplexity value;
  std::shared_ptr<const std::vector<std::string>> files;  // of the data's documents, or none
  std::string protocol_name = "";                         // of eval.protocols

  std::string file_name() const;  // "val-sliding-512.json", "val-NAME-512.json": tells the results of one run apart
};

// One line, and one more where recall was measured, without the last line's end. named: begins with model, data and the
// protocol's name.
std::string result_text(const EvalResult& result, bool named);
Json result_json(const EvalResult& result);

// The metric of a dotted name: "metric", "model.metric", "model.data.metric", "protocol.ctx512.metric", ...: the labels
// may come in any order and must leave one result. Error(Exit::config), listing the results, otherwise.
double named_metric(const std::string& name, const std::vector<EvalResult>& results);
// Error(Exit::config) where the name's last part is no metric.
void check_metric_name(const std::string& name);

}  // namespace sieve
