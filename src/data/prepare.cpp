#include "data/prepare.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <system_error>

#include "core/error.h"
#include "data/encode_texts.h"
#include "data/shard_series.h"
#include "data/split_folders.h"
#include "data/token_spool.h"
#include "io/file.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;

bool is_split_name(const std::string& name) {
  return !name.empty() && name.front() != '-' &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") ==
             std::string::npos;
}

// A folder that is gone when this is, whatever happened in between.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(fs::path path) : path_(std::move(path)) {
    fs::remove_all(path_);  // of a run that was killed
    make_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

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
         "' is no name of a folder: letters, digits, _ and, not at its beginning, - make one");
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
  std::erase_if(files, [&](const TextFile& f) { return is_shard_of_output(f.path, o.output); });
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

void rename_or_fail(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) {
    fail(Exit::data, "prepare", "cannot rename ", from.string(), " to ", to.string(), ": ", error.message());
  }
}

// temporary/SPLIT -> output/SPLIT. What was there goes aside first.
void publish(const fs::path& temporary, const fs::path& output, const SplitFolders& folders, PrepareReport& report) {
  const auto put_aside = [&](const std::string& split) {
    std::error_code error;
    if (fs::exists(output / split, error)) rename_or_fail(output / split, temporary / ("old-" + split));
  };
  for (const std::string& split : folders.written) {
    put_aside(split);
    sync_directory(temporary / split);
    rename_or_fail(temporary / split, output / split);
  }
  for (const std::string& split : folders.orphaned) {
    put_aside(split);
    report.removed.push_back((output / split).string());
  }
  sync_directory(output);
  for (PreparedSplit* split : {&report.train, &report.val}) {
    for (std::string& path : split->shards) path = (output / fs::path(path).lexically_relative(temporary)).string();
  }
}

}  // namespace

PrepareReport prepare(const Tokenizer& tokenizer, const PrepareOptions& options,
                      const std::function<void(const PrepareProgress&)>& progress) {
  check_options(tokenizer, options);
  const SplitFolders folders = split_folders(options);
  const std::vector<TextFile> files = input_files(options);
  PrepareReport report;
  report.files = static_cast<std::int64_t>(files.size());
  PrepareProgress state;
  state.files = report.files;
  state.phase = "encode";

  make_directories(options.output);
  const TemporaryFolder temporary(fs::path(options.output) / ".tmp-prepare");
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
  publish(temporary.path(), options.output, folders, report);
  return report;
}

}  // namespace sieve
