#include "train/demo.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "core/log.h"
#include "data/prepare.h"
#include "train/format.h"

namespace sieve {
namespace {

constexpr const char* kFolder = "data/demo-bytes";
constexpr const char* kHeaders = "/usr/include/c++";

constexpr std::string_view kConfig = R"(schema: 1
run: {name: demo}
model:
  arch: llama
  n_layers: 4
  d_model: 128
  n_heads: 4
  attention:
    kinds:
      sk: {type: sparsek, k: 64, window: 64}
    pattern: [sk]
data: {train: [data/demo-bytes/train], val: [data/demo-bytes/val], seq_len: 512}
train:
  steps: 300
  global_batch: 8Ki
  micro_batch: 4
  optimizer: {lr: 3e-3}
  schedule: {type: cosine, warmup: 30, min_lr: 3e-4}
eval: {every: 100, tokens: 64Ki}
checkpoint: {every: 100}
sample: {every: 100, prompts: ["// "]}
)";

// The newest of the installed standard libraries.
std::string header_folder() {
  std::vector<std::string> versions;
  if (std::filesystem::is_directory(kHeaders)) {
    for (const auto& entry : std::filesystem::directory_iterator(kHeaders)) {
      if (entry.is_directory()) versions.push_back(entry.path().string());
    }
  }
  if (versions.empty())
    fail(Exit::config, "demo", "no C++ headers in ", kHeaders,
         ": give a configuration, or data.train=FOLDER (sieve data prepare makes it)");
  return *std::max_element(versions.begin(), versions.end());
}

}  // namespace

std::string_view demo_config() { return kConfig; }

bool demo_data_exists() { return std::filesystem::exists(std::string(kFolder) + "/train"); }

void prepare_demo_data() {
  if (demo_data_exists()) return;
  const std::string headers = header_folder();
  log_info("demo   text from ", headers);
  const PrepareReport report =
      prepare(*make_byte_tokenizer(), {.inputs = {headers}, .output = kFolder, .val_fraction = 0.1});
  log_info("demo   ", report.files, " files, ", format_bytes(static_cast<double>(report.text_bytes)), " -> ", kFolder);
}

}  // namespace sieve
