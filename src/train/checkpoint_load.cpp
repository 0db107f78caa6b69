#include <algorithm>
#include <utility>

#include "core/error.h"
#include "io/json.h"
#include "io/yaml.h"
#include "train/checkpoint.h"

namespace sieve {
namespace {

ArchiveReader open_or_offer(const std::filesystem::path& path) {
  try {
    return ArchiveReader(path);
  } catch (const Error& e) {
    const auto good = last_good_checkpoint(std::filesystem::weakly_canonical(path).parent_path());
    if (e.code() != Exit::data || good.empty()) throw;
    throw Error(Exit::data, cat(e.what(), "\n  last good checkpoint: ", good.string(),
                                " (continue from it with --resume ", good.string(), ")"));
  }
}

RunConfig saved_config(const std::filesystem::path& file) {
  ConfigTree tree;
  tree.load(file);
  RunConfig config;
  tree.bind(config);
  return config;
}

// The weights of one checkpoint, spread over its files.
class WeightFiles {
 public:
  explicit WeightFiles(const ArchiveReader& archive) {
    for (const char* name : {"model.safetensors", "sparsek.safetensors"}) {
      if (archive.has(name)) files_.emplace_back(archive.file(name));
    }
  }
  const SafetensorsFile* holding(const std::string& name) const {
    for (const auto& file : files_) {
      if (file.find(name) != nullptr) return &file;
    }
    return nullptr;
  }
  template <class F>
  void each_name(F&& f) const {
    for (const auto& file : files_) {
      for (const auto& entry : file.entries()) f(entry.name);
    }
  }

 private:
  std::vector<SafetensorsFile> files_;
};

std::string join(const std::vector<std::string>& names) {
  std::string out;
  constexpr std::size_t kShown = 12;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i) out += (i ? ", " : "") + names[i];
  if (names.size() > kShown) out += cat(" and ", names.size() - kShown, " more");
  return out;
}

// Paths of keys, or of groups of keys, that say nothing about what the weights become.
constexpr std::string_view kFree[] = {"run.name",
                                      "run.dir",
                                      "run.max_time",
                                      "train.tokens",
                                      "train.steps",
                                      "train.epochs",
                                      "parallel",
                                      "checkpoint",
                                      "eval",
                                      "sample",
                                      "log",
                                      "init_from",
                                      "data.prefetch",
                                      "data.val",
                                      "train.nonfinite",
                                      "tokenizer.path",
                                      "model.from_checkpoint",
                                      "device.type",
                                      "train.recompute"};
// These move bits, not the mathematics.
constexpr std::string_view kWarned[] = {"run.deterministic", "train.micro_batch"};

bool below(std::string_view path, std::string_view root) {
  return path.substr(0, root.size()) == root &&
         (path.size() == root.size() || path[root.size()] == '.' || path[root.size()] == '[');
}

bool listed(std::string_view path, std::span<const std::string_view> roots) {
  return std::any_of(roots.begin(), roots.end(), [&](std::string_view root) { return below(path, root); });
}

// Where the shards lie may change: what they hold is compared by their hash.
bool is_data_path(std::string_view path) {
  return below(path, "data.train") && path.size() > 5 && path.substr(path.size() - 5) == ".path";
}

}  // namespace

Checkpoint::Checkpoint(const std::filesystem::path& path)
    : archive_(open_or_offer(path)),
      state_(parse_state(read_file(archive_.file("state.json"), 1 << 20), (archive_.path() / "state.json").string())),
      config_(saved_config(archive_.file("config.yaml"))) {}

std::shared_ptr<const Tokenizer> Checkpoint::tokenizer() const {
  if (config_.tokenizer.type == TokenizerType::byte) return make_byte_tokenizer();
  return load_tokenizer_json(archive_.file("tokenizer.json").string());
}

std::string WeightReport::summary() const {
  return cat(mapped.size(), " weights loaded, ", fresh.size(), " new, ", unexpected.size(), " unused");
}

WeightReport load_weights(const Checkpoint& checkpoint, const Decoder& model, bool strict,
                          const std::vector<std::string>& allow_new) {
  const WeightFiles files(checkpoint.archive());
  WeightReport report;
  std::vector<std::string> missing;
  for (const auto& p : model.parameters()) {
    const SafetensorsFile* file = files.holding(p->name);
    if (file == nullptr) {
      const bool allowed = std::any_of(allow_new.begin(), allow_new.end(),
                                       [&](const std::string& pattern) { return matches_pattern(pattern, p->name); });
      (allowed ? report.fresh : missing).push_back(p->name);
      continue;
    }
    const auto& entry = *file->find(p->name);
    if (Shape(entry.shape) != p->master.shape()) {
      report.mismatched.push_back(
          cat(p->name, " ", Shape(entry.shape), " in the checkpoint, ", p->master.shape(), " in the model"));
      continue;
    }
    file->read_into(p->name, p->master);
    refresh_value(*p);
    report.mapped.push_back(p->name);
  }
  files.each_name([&](const std::string& name) {
    const bool used = std::any_of(model.parameters().begin(), model.parameters().end(),
                                  [&](const auto& p) { return p->name == name; });
    if (!used) report.unexpected.push_back(name);
  });
  std::string problems;
  if (!missing.empty())
    problems += cat("\n  not in the checkpoint (init_from.allow_new may name them): ", join(missing));
  if (strict && !report.unexpected.empty())
    problems += cat("\n  not in the model (init_from.strict: false leaves them out): ", join(report.unexpected));
  if (!report.mismatched.empty()) problems += cat("\n  of another shape: ", join(report.mismatched));
  if (!problems.empty())
    fail(Exit::data, "checkpoint", checkpoint.path().string(), ": its weights do not fit the model", problems);
  return report;
}

LoadedModel load_model(const std::filesystem::path& path, std::optional<DType> wanted) {
  const Checkpoint checkpoint(resolve_checkpoint(path));
  LoadedModel loaded;
  loaded.config = checkpoint.config();
  loaded.state = checkpoint.state();
  loaded.tokenizer = checkpoint.tokenizer();
  loaded.path = checkpoint.path();
  const DType compute = wanted.value_or(loaded.config.device.precision == Precision::bf16 ? DType::bf16 : DType::f32);
  loaded.model =
      std::make_unique<Decoder>(loaded.config.model, DecoderOptions{.compute = compute, .seed = 0, .recompute = {}});
  load_weights(checkpoint, *loaded.model, true, {});
  return loaded;
}

ResumeComparison compare_for_resume(const RunConfig& saved, const RunConfig& now) {
  ResumeComparison result;
  const auto before = flatten_config(saved), after = flatten_config(now);
  const auto text_of = [](const std::vector<FieldText>& fields, const std::string& path) -> std::string {
    const auto found = std::find_if(fields.begin(), fields.end(), [&](const FieldText& f) { return f.path == path; });
    return found == fields.end() ? "absent" : found->text;
  };
  const auto compare = [&](const std::string& path) {
    const std::string was = text_of(before, path), is = text_of(after, path);
    if (was == is || listed(path, kFree) || is_data_path(path)) return;
    (listed(path, kWarned) ? result.warned : result.refused)
        .push_back(cat(path, ": ", was, " in the checkpoint, ", is, " now"));
  };
  for (const auto& field : after) compare(field.path);
  for (const auto& field : before) {
    if (text_of(after, field.path) == "absent") compare(field.path);
  }
  return result;
}

std::string resume_hash(const RunConfig& config) {
  std::vector<std::string_view> skip(std::begin(kFree), std::end(kFree));
  skip.insert(skip.end(), std::begin(kWarned), std::end(kWarned));
  skip.push_back("data.train");
  return hex64(config_hash(config, skip));
}

}  // namespace sieve
