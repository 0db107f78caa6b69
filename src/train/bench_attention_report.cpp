// Letters: B batch, T time, H query heads, Hkv key-value heads, D head size.
#include "train/bench_attention_report.h"

#include <algorithm>
#include <cmath>
#include <iostream>

#include "io/file.h"
#include "io/json.h"
#include "train/format.h"

namespace sieve {
namespace {

std::string milliseconds(double seconds) { return format_fixed(seconds * 1e3, seconds < 0.1 ? 3 : 1); }

const AttentionTiming* find(const std::vector<AttentionTiming>& timings, const std::string& pattern, std::int64_t T) {
  for (const AttentionTiming& t : timings)
    if (t.pattern == pattern && t.T == T && t.missing.empty()) return &t;
  return nullptr;
}

std::string settings_line(const BenchAttentionOptions& o, const AttentionSetting& s) {
  std::string line =
      cat(s.device, ", ", s.dtype, ", ", s.B * s.H, " rows (B=", s.B, ", H=", s.H, s.Hkv == s.H ? "" : cat("/", s.Hkv),
          "), D=", s.D, o.rotary ? ", rotary" : "", o.deterministic ? ", deterministic" : "",
          o.own_engine ? ", own engine" : "", "; window=", o.window, ", k=", o.k, ", gate=", o.gate, ", pool=", o.pool,
          ", slope=", o.slope, ", scores=", o.scores);
  return line + "; milliseconds (median), caches emptied before every pass";
}

Json row_json(const AttentionTiming& t) {
  Json row{{"pattern", t.pattern}, {"T", t.T}, {"B", t.B}};
  if (!t.missing.empty()) {
    row["missing"] = t.missing;
    return row;
  }
  row["passes"] = t.passes;
  row["forward_ms"] = t.forward * 1e3;
  row["backward_ms"] = t.backward * 1e3;
  row["total_ms"] = t.total * 1e3;
  row["selection_ms"] = t.selection * 1e3;
  row["selection_backward_ms"] = t.selection_backward * 1e3;
  row["forward_tflops"] = t.forward_tflops;
  row["backward_tflops"] = t.backward_tflops;
  Json kernels = Json::object();
  for (const auto& [name, seconds] : t.kernels) kernels[name] = seconds * 1e3;
  row["kernels_ms"] = kernels;
  return row;
}

}  // namespace

AttentionReport::AttentionReport(const BenchAttentionOptions& options, const AttentionSetting& setting)
    : options_(options), setting_(setting) {
  std::cout << settings_line(options, setting) << "\n\n"
            << "| pattern | T | forward | backward | total | selection, forward | backward | TF/s forward | backward | "
               "of full's total |\n|---|---|---|---|---|---|---|---|---|---|"
            << std::endl;
}

void AttentionReport::add(const AttentionTiming& t) {
  timings_.push_back(t);
  std::cout << "| " << t.pattern << " | " << t.T << " | ";
  if (!t.missing.empty()) {
    std::cout << t.missing << " | – | – | – | – | – | – | – |" << std::endl;
  } else {
    const bool selects = t.selection > 0;
    const AttentionTiming* full = find(timings_, "full", t.T);
    const std::string none = "–";
    std::cout << milliseconds(t.forward) << " | " << (t.backward > 0 ? milliseconds(t.backward) : none) << " | "
              << milliseconds(t.total) << " | " << (selects ? milliseconds(t.selection) : none) << " | "
              << (selects && t.backward > 0 ? milliseconds(t.selection_backward) : none) << " | "
              << format_fixed(t.forward_tflops, t.forward_tflops < 10 ? 2 : 0) << " | "
              << (t.backward > 0 ? format_fixed(t.backward_tflops, t.backward_tflops < 10 ? 2 : 0) : none) << " | "
              << (full == nullptr ? none : format_fixed(t.total / full->total, 3)) << " |" << std::endl;
  }
  if (!options_.json_file.empty()) write_json();
  if (!options_.csv_file.empty()) write_csv();
}

void AttentionReport::finish() {
  for (const std::string& pattern : options_.patterns) {
    const bool both = std::any_of(timings_.begin(), timings_.end(), [&](const AttentionTiming& t) {
      return t.pattern == pattern && find(timings_, pattern, t.T) != nullptr && find(timings_, "full", t.T) != nullptr;
    });
    if (pattern == "full" || !both) continue;
    const std::optional<Crossover> at = crossover(timings_, pattern);
    std::cout << '\n' << pattern;
    if (!at) std::cout << ": slower than full attention at every length measured";
    else if (at->at_shortest) std::cout << ": as fast as full attention from T = " << at->length << " or below";
    else std::cout << ": as fast as full attention from T = " << std::llround(at->length) << " (interpolated)";
  }
  std::cout << std::endl;
}

void AttentionReport::write_json() const {
  const BenchAttentionOptions& o = options_;
  Json crossings = Json::object(), rows = Json::array();
  for (const AttentionTiming& t : timings_) {
    rows.push_back(row_json(t));
    if (t.pattern == "full") continue;
    const std::optional<Crossover> at = crossover(timings_, t.pattern);
    if (at) crossings[t.pattern] = {{"T", at->length}, {"or_below", at->at_shortest}};
  }
  const Json all{{"device", setting_.device},
                 {"dtype", setting_.dtype},
                 {"rows", setting_.B * setting_.H},
                 {"heads", setting_.H},
                 {"kv_heads", setting_.Hkv},
                 {"head_dim", setting_.D},
                 {"window", o.window},
                 {"k", o.k},
                 {"pool", o.pool},
                 {"slope", o.slope},
                 {"gate", o.gate},
                 {"scores", o.scores},
                 {"rotary", o.rotary},
                 {"deterministic", o.deterministic},
                 {"own_engine", o.own_engine},
                 {"results", rows},
                 {"crossover", crossings}};
  sieve::write_json(o.json_file, all);
}

void AttentionReport::write_csv() const {
  std::string text =
      "pattern,T,B,passes,forward_ms,backward_ms,total_ms,selection_ms,selection_backward_ms,forward_tflops,"
      "backward_tflops,missing\n";
  for (const AttentionTiming& t : timings_) {
    text += cat(t.pattern, ',', t.T, ',', t.B, ',', t.passes);
    for (const double ms : {t.forward, t.backward, t.total, t.selection, t.selection_backward})
      text += "," + (t.missing.empty() ? json_number(ms * 1e3) : "");
    for (const double rate : {t.forward_tflops, t.backward_tflops})
      text += "," + (t.missing.empty() ? json_number(rate) : "");
    text += "," + t.missing + "\n";
  }
  write_file_atomic(options_.csv_file, text);
}

std::optional<Crossover> crossover(const std::vector<AttentionTiming>& timings, const std::string& pattern) {
  std::vector<std::pair<double, double>> ratios;  // log T, log (time / time of full), by rising T
  for (const AttentionTiming& t : timings) {
    const AttentionTiming* full = find(timings, "full", t.T);
    if (t.pattern != pattern || !t.missing.empty() || full == nullptr) continue;
    ratios.emplace_back(std::log(static_cast<double>(t.T)), std::log(t.total / full->total));
  }
  std::sort(ratios.begin(), ratios.end());
  // The last time that the pattern is the slower one decides: a shorter length that happens to win says nothing.
  const auto slower = std::find_if(ratios.rbegin(), ratios.rend(), [](const auto& r) { return r.second > 0; });
  if (slower == ratios.rbegin()) return std::nullopt;  // at the longest length, or nothing was measured
  if (slower == ratios.rend()) return Crossover{std::round(std::exp(ratios.front().first)), true};
  const auto [before_x, before_y] = *slower;
  const auto [x, y] = *(slower.base());
  return Crossover{std::exp(before_x + (x - before_x) * before_y / (before_y - y)), false};
}

}  // namespace sieve
