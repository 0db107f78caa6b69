#include "data/prepare.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>

#include "core/error.h"
#include "data/encode_texts.h"
#include "data/shard_series.h"
#include "data/split_folders.h"
#include "data/token_spool.h"
#include "data/work_folder.h"
#include "io/file.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;

bool is_split_name(const std::string& name) {
  return !name.empty() && name.size() <= 64 && name.front() != '-' &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") ==
             std::string::npos;
}

// Which documents are validation documents (prepare.h, "Splits").
class Split {
 public:
  Split(const TokenSpool& spool, double fraction) : fraction_(fraction) {
    if (fraction == 0 || spool.documents() == 1) return;
    std::int64_t in_val = 0, smallest = 0, largest = 0;
    std::uint64_t low = std::numeric_limits<std::uint64_t>::max(), high = 0;
    spool.each_document([&](std::int64_t number, const TokenSpool::Document& d) {
      in_val += by_hash(d.hash);
      if (d.hash < low) low = d.hash, smallest = number;
      if (d.hash > high) high = d.hash, largest = number;
    });
    if (in_val == 0) moved_ = smallest;
    if (in_val == spool.documents()) moved_ = largest;
  }
  bool is_val(std::int64_t number, std::uint64_t hash) const { return by_hash(hash) != (number == moved_); }

 private:
  bool by_hash(std::uint64_t hash) const { return static_cast<double>(hash) * 0x1p-64 < fraction_; }
  double fraction_;
  std::int64_t moved_ = -1;
};

void check_options(const Tokenizer& tokenizer, const PrepareOptions& o) {
  if (o.inputs.empty()) fail(Exit::config, "prepare", "no input is named");
  if (o.output.empty()) fail(Exit::config, "prepare", "no output folder is named");
  if (!(o.val_fraction >= 0 && o.val_fraction < 1)) {
    fail(Exit::config, "prepare", "val fraction ", o.val_fraction, " must be at least 0 and below 1");
  }
  if (!is_split_name(o.split)) {
    fail(Exit::config, "prepare", "split '", o.split,
         "' is no name of a folder: at most 64 letters, digits, _ and, not at its beginning, -");
  }
  if (o.split != "train" && o.val_fraction > 0) {
    fail(Exit::config, "prepare", "a val fraction of ", o.val_fraction, " is taken from train, not from split ",
         o.split, "; give one of the two");
  }
  if (o.shard_tokens < 1) fail(Exit::config, "prepare", "shard size ", o.shard_tokens, " must be at least 1 token");
  if (!tokenizer.separator()) {
    fail(Exit::data, "prepare", "tokenizer ", tokenizer.name(),
         " names no token that ends a document; name one as eos_token in a tokenizer_config.json beside it");
  }
}

// The files to read: all that the inputs hold but shards that an earlier call left below the output.
std::vector<TextFile> input_files(const PrepareOptions& o) {
  std::vector<TextFile> files = list_texts(o.inputs);
  std::erase_if(files, [&](const TextFile& f) {
    const bool named = std::find(o.inputs.begin(), o.inputs.end(), f.path) != o.inputs.end();
    return !named && is_shard_of_output(f.path, o.output);
  });
  if (files.empty()) fail(Exit::data, "prepare", "no text files in the inputs");
  return files;
}

void write_shards(const Tokenizer& tokenizer, const TokenSpool& spool, const PrepareOptions& o, const fs::path& folder,
                  PrepareReport& report) {
  ShardHeader header{&tokenizer, o.split, 0, report.source_hash};
  ShardSeries train(spool, header, folder / o.split, o.shard_tokens, report.train);
  if (o.val_fraction == 0) {
    spool.each_document([&](std::int64_t, const TokenSpool::Document& d) { train.add({{d.begin, d.tokens}}); });
    train.flush();
    return;
  }
  header.split = "val";
  ShardSeries val(spool, header, folder / "val", o.shard_tokens, report.val);
  if (spool.documents() == 1) {
    const std::int64_t n = spool.tokens();
    const auto share = static_cast<std::int64_t>(std::ceil(o.val_fraction * static_cast<double>(n)));
    const std::int64_t m = std::clamp<std::int64_t>(share, 1, n - 1);
    train.add({{0, n - m}, {n - 1, 1}});  // the spool's last token is the separator
    val.add({{n - m, m}});
  } else {
    const Split split(spool, o.val_fraction);
    spool.each_document([&](std::int64_t number, const TokenSpool::Document& d) {
      (split.is_val(number, d.hash) ? val : train).add({{d.begin, d.tokens}});
    });
  }
  train.flush();
  val.flush();
}

}  // namespace

PrepareReport prepare(const Tokenizer& tokenizer, const PrepareOptions& options,
                      const std::function<void(const PrepareProgress&)>& progress) {
  check_options(tokenizer, options);
  const fs::path output = options.output;
  SplitFolders folders = split_folders(options, std::nullopt);
  const std::vector<TextFile> files = input_files(options);
  PrepareReport report;
  report.files = static_cast<std::int64_t>(files.size());
  PrepareProgress state;
  state.files = report.files;
  state.phase = "encode";

  make_directories(options.output);
  WorkFolder temporary(options.output);
  TokenSpool spool(temporary.path(), token_width(tokenizer.vocab_size()));
  encode_texts(tokenizer, files, options, spool, report, state, progress);
  spool.finish();
  if (spool.documents() == 0) {
    fail(Exit::data, "prepare", options.inputs.front(), options.inputs.size() > 1 ? " and the other inputs" : "",
         ": no text: ", report.files, report.files == 1 ? " file" : " files", " with nothing in ",
         report.files == 1 ? "it" : "them");
  }
  state.files_done = state.files;
  state.phase = "write";
  if (progress) progress(state);
  write_shards(tokenizer, spool, options, temporary.path(), report);
  folders = split_folders(options, report.source_hash);  // what came meanwhile is not replaced unasked either
  temporary.publish(folders);
  for (const std::string& split : folders.orphaned) report.removed.push_back((output / split).string());
  for (PreparedSplit* split : {&report.train, &report.val}) {
    for (std::string& path : split->shards) {
      path = (output / fs::path(path).lexically_relative(temporary.path())).string();
    }
  }
  return report;
}

}  // namespace sieve
