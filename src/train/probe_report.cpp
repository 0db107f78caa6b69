#include "train/probe_report.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/version.h"
#include "io/json.h"
#include "train/format.h"

namespace sieve {
namespace {

std::string percent(const ProbeCount& count) {
  return count.asked > 0 ? format_fixed(100 * count.accuracy(), 1) + " %" : "-";
}

std::string name_of(ProbeTask task) { return std::string(kProbeTaskNames[static_cast<std::size_t>(task)]); }

std::string layers_text(const ModelConfig& model) {
  std::string text;
  for (const std::string& name : model.attention.pattern) {
    const AttentionKindConfig& kind = model.attention.kinds.at(name);
    text += cat(text.empty() ? "" : ", ", kAttentionKindNames[static_cast<std::size_t>(kind.type)]);
    if (kind.k > 0) text += cat(" k ", kind.k);
    if (kind.window > 0) text += cat(" window ", kind.window);
  }
  return cat(model.n_layers, " layers of ", model.d_model, ", ", *model.n_kv_heads, " key-value heads: ", text);
}

// A line of cells as wide as those of the widest line.
std::string table_text(const std::vector<std::vector<std::string>>& lines) {
  std::vector<std::size_t> widths(lines.front().size());
  for (const auto& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (const auto& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i)
      text += cat(i > 0 ? "  " : "", std::string(widths[i] - line[i].size(), ' '), line[i]);
    text += '\n';
  }
  return text;
}

// [from, to) of a bucket of distances.
std::int64_t distance_from(std::size_t bucket) { return std::int64_t{1} << bucket; }

Json count_json(const ProbeCount& count) {
  return {{"asked", count.asked}, {"right", count.right}, {"accuracy", count.accuracy()}};
}

Json result_json(const ProbeResult& r) {
  Json json = count_json(r.tokens);
  json["length"] = r.setting.length;
  json["items"] = r.setting.items;
  json["depth"] = r.setting.depth ? Json(*r.setting.depth) : Json(nullptr);
  json["rows"] = count_json(r.rows);
  json["distances"] = Json::array();
  for (std::size_t b = 0; b < r.distances.size(); ++b) {
    if (r.distances[b].asked == 0) continue;
    Json bucket = count_json(r.distances[b]);
    bucket["from"] = distance_from(b);
    bucket["to"] = distance_from(b + 1);
    json["distances"].push_back(std::move(bucket));
  }
  return json;
}

}  // namespace

std::string probe_text(const ProbeConfig& c, const ProbeOutcome& outcome) {
  const ProbeGroup& p = c.probe;
  std::string text =
      cat(name_of(p.task), " · ", layers_text(c.model), "\ntrained on ", p.steps, " x ", p.batch, " rows of ", p.length,
          " tokens with ", p.items, " items, seed ", p.seed, " · ", outcome.device, " · ",
          format_seconds(outcome.train_seconds), " + ", format_seconds(outcome.eval_seconds), " · chance ",
          format_fixed(100.0 / static_cast<double>(*p.symbols), 1), " %\n");
  const bool deep = std::any_of(outcome.results.begin(), outcome.results.end(),
                                [](const ProbeResult& r) { return r.setting.depth.has_value(); });
  std::vector<std::vector<std::string>> lines{{"length", "items", "depth", "rows", "accuracy", "whole rows"}};
  if (!deep) lines[0].erase(lines[0].begin() + 2);
  for (const ProbeResult& r : outcome.results) {
    lines.push_back({std::to_string(r.setting.length), std::to_string(r.setting.items)});
    if (deep) lines.back().push_back(r.setting.depth ? format_fixed(100 * *r.setting.depth, 0) + " %" : "any");
    lines.back().push_back(std::to_string(r.rows.asked));
    lines.back().push_back(percent(r.tokens));
    lines.back().push_back(percent(r.rows));
  }
  text += table_text(lines);
  for (const ProbeResult& r : outcome.results) {
    const auto filled =
        std::count_if(r.distances.begin(), r.distances.end(), [](const auto& d) { return d.asked > 0; });
    if (filled < 2 || deep) continue;
    text += cat("by distance, length ", r.setting.length, ", ", r.setting.items, " items");
    for (std::size_t b = 0; b < r.distances.size(); ++b) {
      if (r.distances[b].asked > 0)
        text += cat(" · ", distance_from(b), "-", distance_from(b + 1) - 1, ": ", percent(r.distances[b]));
    }
    text += '\n';
  }
  return text;
}

std::string probe_json(const ProbeConfig& c, const ProbeOutcome& outcome) {
  Json json{{"task", name_of(c.probe.task)},
            {"config", config_json<ProbeConfig, Json>(c)},
            {"chance", 1.0 / static_cast<double>(*c.probe.symbols)},
            {"parameters", outcome.parameters},
            {"device", outcome.device},
            {"git", git_revision()},
            {"seconds", {{"train", outcome.train_seconds}, {"evaluate", outcome.eval_seconds}}},
            {"results", Json::array()},
            {"curve", Json::array()}};
  for (const ProbeResult& r : outcome.results) json["results"].push_back(result_json(r));
  for (const ProbePoint& point : outcome.curve) {
    json["curve"].push_back({{"step", point.step}, {"loss", point.loss}});
    if (point.accuracy) json["curve"].back()["accuracy"] = *point.accuracy;
  }
  return json_text(json) + '\n';
}

double probe_metric(const std::string& name, const std::vector<ProbeResult>& results) {
  if (name != "accuracy" && name != "rows")
    fail(Exit::config, "fail-if", "unknown metric \"", name, "\" (accuracy, rows)");
  ProbeCount sum;
  for (const ProbeResult& r : results) {
    const ProbeCount& count = name == "rows" ? r.rows : r.tokens;
    sum.asked += count.asked, sum.right += count.right;
  }
  return sum.accuracy();
}

}  // namespace sieve
