// Text to token shards (data/token_store.h describes them), in bounded memory: the text is read and encoded piece by
// piece, tokens go to a temporary file first and from there into shards. What is held is a few pieces of text, or the
// longest document where the tokenizer needs the whole of it (a normalizer or added tokens in its tokenizer.json).
//
// Inputs are those of data/texts.h. A document gets the tokenizer's separator at its end. Empty documents are skipped
// and counted.
//
// Splits: with val_fraction > 0 a document goes to val when XXH3-64 (of its first 64 KiB) / 2^64 < val_fraction, so the
// split depends on the text alone, not on order or names. If that leaves val (train) empty, the document with the
// smallest (largest) hash moves there. A single document is cut: its last ceil(val_fraction * tokens) tokens are the
// validation document.
//
// Output: DIR/train/shard_00000.h5 ... (or DIR/split/...) and, with val_fraction > 0, DIR/val/shard_00000.h5 ...;
// complete or absent: everything is written under DIR/.tmp-prepare and renamed at the end. The same input gives the
// same bytes, whatever the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/texts.h"
#include "data/tokenizer.h"

namespace sieve {

struct PrepareOptions {
  std::vector<std::string> inputs;  // at least one
  std::string output;               // folder, created if absent
  std::string field = "text";       // of JSON lines
  bool allow_invalid_utf8 = false;  // bytes of text files that are not UTF-8 are kept as they are; else an error
  double val_fraction = 0;          // 0 <= f < 1; with the split "train" alone
  std::string split = "train";      // name and folder: at most 64 letters, digits, _ and -
  std::int64_t shard_tokens = 100'000'000;  // a shard ends before the document that would exceed this (and after 2^22
                                            // documents); documents are never cut, so one may be longer
  bool overwrite = false;                   // replace folders that hold shards, and nothing else, of this call's splits
};

struct PrepareProgress {
  std::int64_t files_done = 0, files = 0;
  std::int64_t documents = 0;
  std::int64_t text_bytes = 0, tokens = 0;
  std::string_view phase;  // "encode" | "write"
};

struct PreparedSplit {
  std::int64_t documents = 0, tokens = 0;
  std::vector<std::string> shards;  // paths
};

struct PrepareReport {
  PreparedSplit train, val;  // train: the split that options.split names
  std::int64_t files = 0, text_bytes = 0;
  std::int64_t empty_documents = 0;
  std::vector<std::string> removed;  // folders: a val/ of the same text as the old or new train/
  std::uint64_t source_hash = 0;     // of names (relative to the inputs) and contents
};

// Exit::config: options out of range, output exists without overwrite or holds something else than shards
// (data/split_folders.h). Exit::data: what data/texts.h says of the
// inputs, no text at all, a tokenizer without a separator, a full or unwritable disk. Nothing is left behind then.
PrepareReport prepare(const Tokenizer& tokenizer, const PrepareOptions& options,
                      const std::function<void(const PrepareProgress&)>& progress = {});

}  // namespace sieve
