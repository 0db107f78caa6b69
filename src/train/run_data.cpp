#include "train/run_data.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <vector>

#include "core/error.h"
#include "io/file.h"
#include "train/compute.h"

namespace sieve {
namespace {

std::vector<std::string> patterns_of(const DataGroup& data) {
  std::vector<std::string> patterns;
  for (const auto& source : data.train) patterns.push_back(source.path);
  return patterns;
}

// Two names of one file are one file.
void check_disjoint(const RunConfig& config, const ConfigTree& tree) {
  std::set<std::filesystem::path> train;
  for (const auto& path : expand_shard_patterns(patterns_of(config.data)))
    train.insert(std::filesystem::canonical(path));
  for (const auto& path : expand_shard_patterns(config.data.val)) {
    if (train.count(std::filesystem::canonical(path)) != 0)
      tree.fail_at("data.val", cat(path, " is also a training shard: the validation loss would say nothing"));
  }
}

}  // namespace

std::shared_ptr<const Tokenizer> open_run_tokenizer(const RunConfig& config, const ConfigTree& tree) {
  const std::string path = config.tokenizer.path.value_or("");
  if (config.tokenizer.type == TokenizerType::hf_json && !std::filesystem::exists(path))
    throw Error(Exit::data,
                cat(tree.place_of("tokenizer.path"), ": error: tokenizer.path: there is no file ", path,
                    "; sieve tokenizer train TEXT -o ", path, " --vocab-size ", config.model.vocab_size.value_or(8192),
                    " makes one from your text; any byte-level BPE tokenizer.json, such as GPT-2's, will do too"));
  return open_tokenizer(std::string(kTokenizerTypeNames[static_cast<std::size_t>(config.tokenizer.type)]), path);
}

RunData open_run_data(const RunConfig& config, const ConfigTree& tree) {
  if (config.data.train.empty()) tree.fail_at("data.train", "names no training shards (sieve data prepare makes them)");
  RunData data;
  data.tokenizer = open_run_tokenizer(config, tree);
  data.tokenizer_hash = hex64(data.tokenizer->hash());
  if (config.model.vocab_size && *config.model.vocab_size < data.tokenizer->vocab_size())
    tree.fail_at("model.vocab_size", cat(*config.model.vocab_size, " rows cannot hold the ",
                                         data.tokenizer->vocab_size(), " tokens of the tokenizer; use auto"));

  std::vector<TrainingSet::Source> sources;
  std::string hashes;
  for (const auto& source : config.data.train) {
    auto store = std::make_shared<TokenStore>(source.path, data.tokenizer.get());
    hashes += hex64(store->data_hash());
    sources.push_back({std::move(store), source.weight});
  }
  data.train_hash = hex64(xxh3(hashes));
  data.train = std::make_shared<TrainingSet>(std::move(sources), config.data.seq_len,
                                             static_cast<std::uint64_t>(config.data.shuffle.seed),
                                             config.model.attention.document_mask);
  if (!config.data.val.empty()) {
    check_disjoint(config, tree);
    auto store = std::make_shared<TokenStore>(config.data.val, data.tokenizer.get());
    data.val_hash = hex64(store->data_hash());
    data.val = std::move(store);
  }
  return data;
}

void resolve_config(RunConfig& config, std::int64_t vocab_size, int world_size) {
  if (!config.run.dir) config.run.dir = config.run_dir();
  if (config.device.type == DeviceType::automatic) config.device.type = resolve_device(config.device.type);
  if (!config.run.deterministic) config.run.deterministic = config.device.type == DeviceType::cpu;
  if (!config.model.from_checkpoint) config.model.from_checkpoint = config.init_from.path.has_value();
  if (!config.train.global_batch) config.train.global_batch = micro_step_tokens(config, world_size);
  config.model.resolve(vocab_size, config.data.seq_len, config.run.seed);
}

}  // namespace sieve
