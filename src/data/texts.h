// Documents of text from files and folders, piece by piece: what preparation and tokenizer training read.
//
// Folders are walked recursively, files by path in byte order, hidden ones skipped. By name, after a .gz or .zst is
// taken off: .jsonl and .ndjson hold one JSON object a line with a document in one field (a string); anything else is
// one document of text. Compression is told by content, not by name.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace sieve {

struct TextFile {
  std::string path;
  std::string name;  // relative to the input that names it
  bool json_lines = false;
};

// Exit::data where an input does not exist, cannot be read, or holds no file.
std::vector<TextFile> list_texts(const std::vector<std::string>& inputs);

struct TextPiece {
  std::string_view text;  // at most a few MiB of a text file, or a whole JSON document
  bool last;              // ends its document; the text may then be empty
  std::int64_t document;  // counts from 0
  const TextFile* source;
};

using TextPieceFn = std::function<void(const TextPiece&)>;

// Every document in order. Pieces end between UTF-8 sequences. Exit::data, with file and place: unreadable or damaged
// files, JSON lines that are not JSON, not UTF-8 or lack the field, text that is not UTF-8 (unless allowed: text files
// only).
void read_texts(const std::vector<TextFile>& files, const std::string& field, bool allow_invalid_utf8,
                const TextPieceFn& piece);
void read_texts(const std::vector<std::string>& inputs, const std::string& field, const TextPieceFn& piece,
                bool allow_invalid_utf8 = false);

}  // namespace sieve
