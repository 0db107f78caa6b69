#include "train/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "core/build.h"
#include "core/error.h"
#include "core/version.h"
#include "io/json.h"
#include "io/yaml.h"

namespace sieve {
namespace {

constexpr std::string_view kPrefix = "step_";
constexpr std::size_t kDigits = 8;

std::optional<double> optional_number(const Json& object, const char* key, const std::string& name) {
  if (json_member(object, key, name).is_null()) return std::nullopt;
  return get_json<double>(object, key, name);
}

Json number_or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

// Checkpoints of a folder with their validation loss, oldest first. One whose state cannot be read counts as not
// validated.
struct Listed {
  std::string name;
  std::int64_t step;
  std::optional<double> val_loss;
  std::string val_set;
};

std::vector<Listed> list_checkpoints(const std::filesystem::path& folder, bool with_loss) {
  std::vector<Listed> out;
  if (!std::filesystem::is_directory(folder)) return out;
  for (const auto& name : list_archives(folder)) {
    const auto step = step_of_checkpoint(name);
    if (!step) continue;
    Listed entry{name, *step, std::nullopt, ""};
    if (with_loss) {
      try {
        const auto path = folder / name / "state.json";
        const TrainState state = parse_state(read_file(path, 1 << 20), path.string());
        entry.val_loss = state.val_loss;
        entry.val_set = state.val_set;
      } catch (const Error&) {}
    }
    out.push_back(std::move(entry));
  }
  std::sort(out.begin(), out.end(), [](const Listed& a, const Listed& b) { return a.step < b.step; });
  return out;
}

}  // namespace

std::string state_text(const TrainState& s) {
  const Json json{{"format", 1},
                  {"step", s.step},
                  {"tokens", s.tokens},
                  {"updates", s.updates},
                  {"skipped_steps", s.skipped},
                  {"consecutive_skipped", s.consecutive_skipped},
                  {"seconds", s.seconds},
                  {"loss", s.loss},
                  {"lr", s.lr},
                  {"val_loss", number_or_null(s.val_loss)},
                  {"best_val_loss", number_or_null(s.best_val_loss)},
                  {"config_hash", s.config_hash},
                  {"tokenizer_hash", s.tokenizer_hash},
                  {"data_hash", s.data_hash},
                  {"val_set", s.val_set},
                  {"version", build::version},
                  {"git", git_revision()}};
  return json_text(json) + "\n";
}

TrainState parse_state(const std::string& text, const std::string& name) {
  const Json json = parse_json(text, name);
  const auto format = get_json<std::int64_t>(json, "format", name);
  if (format != 1) fail(Exit::data, "checkpoint", name, ": format ", format, " is newer than this program");
  TrainState s;
  s.step = get_json<std::int64_t>(json, "step", name);
  s.tokens = get_json<std::int64_t>(json, "tokens", name);
  s.updates = get_json<std::int64_t>(json, "updates", name);
  s.skipped = get_json<std::int64_t>(json, "skipped_steps", name);
  s.consecutive_skipped = get_json<std::int64_t>(json, "consecutive_skipped", name);
  s.seconds = get_json<double>(json, "seconds", name);
  s.loss = optional_number(json, "loss", name).value_or(0);  // null where the last step's loss was not finite
  s.lr = get_json<double>(json, "lr", name);
  s.val_loss = optional_number(json, "val_loss", name);
  s.best_val_loss = optional_number(json, "best_val_loss", name);
  s.config_hash = get_json<std::string>(json, "config_hash", name);
  s.tokenizer_hash = get_json<std::string>(json, "tokenizer_hash", name);
  s.data_hash = get_json<std::string>(json, "data_hash", name);
  if (json.contains("val_set")) s.val_set = get_json<std::string>(json, "val_set", name);
  if (s.step < 0 || s.updates < 0 || s.updates > s.step || s.skipped != s.step - s.updates)
    fail(Exit::data, "checkpoint", name, ": ", s.step, " steps are not ", s.updates, " updates and ", s.skipped,
         " skipped ones");
  return s;
}

std::string checkpoint_name(std::int64_t step) {
  char text[40];
  std::snprintf(text, sizeof text, "step_%08lld", static_cast<long long>(step));
  return text;
}

std::optional<std::int64_t> step_of_checkpoint(const std::string& name) {
  if (name.compare(0, kPrefix.size(), kPrefix) != 0 || name.size() < kPrefix.size() + kDigits) return std::nullopt;
  std::int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (parsed.ec != std::errc{} || parsed.ptr != end || step < 0) return std::nullopt;
  return step;
}

void collect_weights(const Decoder& model, TensorMap& weights, TensorMap& scorers) {
  for (const auto& p : model.parameters()) (p->scorer ? scorers : weights)[p->name] = p->master;
}

std::string model_json(const ModelConfig& resolved) {
  const Json json{{"format", "sieve"},
                  {"version", build::version},
                  {"model_type", kArchNames[static_cast<std::size_t>(resolved.arch)]},
                  {"model", config_json(resolved)}};
  return json_text(json) + "\n";
}

namespace {

TensorMap on_host(const TensorMap& tensors) {
  TensorMap out;
  for (const auto& [name, tensor] : tensors) out[name] = tensor.to(Stream{});
  return out;
}

}  // namespace

ArchiveReport write_checkpoint(const std::filesystem::path& folder, const CheckpointContent& c) {
  const std::uint64_t bytes =
      safetensors_bytes(c.model) + safetensors_bytes(c.scorers) + safetensors_bytes(c.optimizer);
  ArchiveWriter archive(folder, checkpoint_name(c.state.step), bytes);
  archive.write("config.yaml", c.config_yaml);
  archive.write("config.json", c.config_json);
  archive.write("state.json", state_text(c.state));
  c.tokenizer->save(archive.add_file("tokenizer.json").string());
  write_safetensors(archive.add_file("model.safetensors"), on_host(c.model));
  if (!c.scorers.empty()) write_safetensors(archive.add_file("sparsek.safetensors"), on_host(c.scorers));
  write_safetensors(archive.add_file("optimizer.safetensors"), on_host(c.optimizer));
  return archive.commit();
}

namespace {

// What the rules make of a folder: the targets of its links (empty: none), and what nothing keeps.
struct Sorted {
  std::string latest, best;
  std::vector<std::string> superfluous;
};

Sorted sort_checkpoints(const std::filesystem::path& folder, const PruneRules& rules) {
  const auto all = list_checkpoints(folder, true);
  if (all.empty()) return {};
  // Ranks of those validated on the text of the newest one; of equal losses the older one wins: it was the best first.
  std::vector<const Listed*> best;
  for (const auto& entry : all) {
    if (entry.val_loss && entry.val_set == all.back().val_set) best.push_back(&entry);
  }
  std::stable_sort(best.begin(), best.end(),
                   [](const Listed* a, const Listed* b) { return *a->val_loss < *b->val_loss; });
  const auto good =
      best.begin() + std::min(static_cast<std::ptrdiff_t>(rules.keep_best), static_cast<std::ptrdiff_t>(best.size()));

  Sorted sorted{all.back().name, "", {}};
  std::vector<std::string>& removed = sorted.superfluous;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool recent = i + static_cast<std::size_t>(rules.keep_last) >= all.size();
    const bool milestone = rules.keep_every > 0 && all[i].step % rules.keep_every == 0;
    if (!recent && !milestone && std::find(best.begin(), good, &all[i]) == good) removed.push_back(all[i].name);
  }
  const auto stays = [&](const Listed* entry) {
    return std::find(removed.begin(), removed.end(), entry->name) == removed.end();
  };
  const auto best_left = std::find_if(best.begin(), best.end(), stays);
  if (best_left != best.end()) sorted.best = (*best_left)->name;
  return sorted;
}

void set_links(const std::filesystem::path& folder, const Sorted& sorted) {
  if (!sorted.latest.empty()) set_archive_link(folder, "latest", sorted.latest);
  if (!sorted.best.empty()) set_archive_link(folder, "best", sorted.best);
}

}  // namespace

void link_checkpoints(const std::filesystem::path& folder, const PruneRules& rules) {
  set_links(folder, sort_checkpoints(folder, rules));
}

std::vector<std::string> prune_checkpoints(const std::filesystem::path& folder, const PruneRules& rules) {
  const Sorted sorted = sort_checkpoints(folder, rules);
  set_links(folder, sorted);  // first: at no moment does one of them name what is gone
  for (const auto& name : sorted.superfluous) remove_archive(folder, name);
  return sorted.superfluous;
}

std::filesystem::path newest_checkpoint(const std::filesystem::path& folder) {
  const auto all = list_checkpoints(folder, false);
  return all.empty() ? std::filesystem::path() : folder / all.back().name;
}

std::filesystem::path last_good_checkpoint(const std::filesystem::path& folder) {
  const auto all = list_checkpoints(folder, false);
  for (auto entry = all.rbegin(); entry != all.rend(); ++entry) {
    if (verify_archive(folder / entry->name).empty()) return folder / entry->name;
  }
  return {};
}

std::filesystem::path resolve_checkpoint(const std::filesystem::path& path) {
  if (std::filesystem::exists(path / "manifest.json") && std::filesystem::exists(path / "state.json")) return path;
  for (const auto& folder : {path / "checkpoints", path}) {
    for (const char* link : {"best", "latest"}) {
      if (std::filesystem::is_directory(folder) && !read_archive_link(folder, link).empty()) return folder / link;
    }
    if (const auto newest = newest_checkpoint(folder); !newest.empty()) return newest;
  }
  fail(Exit::data, "checkpoint", path.string(),
       std::filesystem::exists(path) ? " holds no checkpoint of sieve (a folder with manifest.json and state.json, or "
                                       "a run folder with checkpoints/; "
                                       "weights of other programs cannot be loaded)"
                                     : " does not exist");
}

}  // namespace sieve
