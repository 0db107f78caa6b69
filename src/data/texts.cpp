#include "data/texts.h"

#include <algorithm>
#include <filesystem>
#include <span>
#include <system_error>

#include "core/error.h"
#include "data/utf8.h"
#include "io/file.h"
#include "io/json.h"
#include "io/text_input.h"

namespace sieve {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t kPiece = 4 << 20;  // bytes of text at once

bool is_json_lines(std::string_view name) {
  for (const std::string_view packed : {".gz", ".zst"}) {
    if (name.ends_with(packed)) name.remove_suffix(packed.size());
  }
  return name.ends_with(".jsonl") || name.ends_with(".ndjson");
}

std::string hex_byte(char c) {
  const auto b = static_cast<unsigned char>(c);
  return {'0', 'x', "0123456789ABCDEF"[b >> 4], "0123456789ABCDEF"[b & 15]};
}

class Reading {
 public:
  Reading(const TextFile& file, std::int64_t& documents, const TextPieceFn& piece)
      : file_(file), documents_(documents), piece_(piece), reader_(file.path) {}

  void text(bool allow_invalid_utf8) {
    std::string buffer;
    std::uint64_t before = 0;  // bytes of the file before the buffer
    for (;;) {
      const bool end = fill(buffer);
      if (before == 0) refuse_hdf5(buffer);
      std::size_t whole = buffer.size();
      if (!end) {  // a sequence that the piece's end cuts waits for the next piece
        for (std::size_t tail = std::min<std::size_t>(3, buffer.size()); tail > 0; --tail) {
          const std::string_view cut = std::string_view(buffer).substr(buffer.size() - tail);
          if (utf8_sequence(cut) == 0 && utf8_may_continue(cut)) {
            whole = buffer.size() - tail;
            break;
          }
        }
      }
      const std::string_view ready = std::string_view(buffer).substr(0, whole);
      if (!allow_invalid_utf8) check_utf8(ready, before);
      emit(ready, end);
      if (end) return;
      before += whole;
      buffer.erase(0, whole);
    }
  }

  void json_lines(const std::string& field) {
    std::string line;
    while (reader_.read_line(line)) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      const std::string place = cat(file_.path, ", line ", reader_.line_number());
      if (const std::size_t good = valid_utf8_prefix(line); good < line.size()) {
        fail(Exit::data, "text", place, ": not UTF-8 at byte ", good, " of the line (", hex_byte(line[good]),
             "); JSON is UTF-8");
      }
      const Json object = parse_json(line, place);
      if (!object.is_object() || !object.contains(field)) {
        fail(Exit::data, "text", place, ": no field \"", field, "\"; name the field that holds the text (--field)");
      }
      if (!object[field].is_string()) fail(Exit::data, "text", place, ": field \"", field, "\" is not a string");
      emit(object[field].get_ref<const std::string&>(), true);
    }
  }

 private:
  // Reads until `buffer` holds kPiece bytes; true at the end of the file, so that a short file is one piece.
  bool fill(std::string& buffer) {
    for (std::size_t at = buffer.size(); at < kPiece;) {
      buffer.resize(kPiece);
      const std::size_t n = reader_.read(std::span(buffer).subspan(at));
      at += n;
      buffer.resize(at);
      if (n == 0) return true;
    }
    return false;
  }
  void emit(std::string_view text, bool last) {
    piece_({text, last, documents_, &file_});
    if (last) ++documents_;
  }
  void refuse_hdf5(std::string_view text) const {  // allow_invalid_utf8 would make tokens of it
    if (!text.starts_with("\x89HDF\r\n\x1a\n")) return;
    fail(Exit::data, "text", file_.path,
         ": a token shard or another HDF5 file, no text; name the files or folders of the text alone");
  }
  void check_utf8(std::string_view text, std::uint64_t before) const {
    const std::size_t good = valid_utf8_prefix(text);
    if (good == text.size()) return;
    fail(Exit::data, "text", file_.path, ": not UTF-8 at byte ", before + good, " (", hex_byte(text[good]),
         "); convert it (iconv -f latin1 -t utf-8), leave it out, or allow such bytes to be kept as they are "
         "(--allow-invalid-utf8)");
  }

  const TextFile& file_;
  std::int64_t& documents_;
  const TextPieceFn& piece_;
  TextReader reader_;
};

}  // namespace

std::vector<TextFile> list_texts(const std::vector<std::string>& inputs) {
  std::vector<TextFile> out;
  for (const std::string& input : inputs) {
    std::error_code error;
    if (!fs::exists(input, error)) {
      fail(Exit::data, "text", input, ": ", error ? error.message() : "no such file or folder");
    }
    const bool folder = fs::is_directory(input, error);
    const auto files = list_text_files(input, {});
    if (files.empty()) fail(Exit::data, "text", input, ": no files in this folder");
    for (const fs::path& f : files) {
      const std::string name = folder ? f.lexically_relative(input).string() : f.filename().string();
      out.push_back({f.string(), name, is_json_lines(name)});
    }
  }
  return out;
}

void read_texts(const std::vector<TextFile>& files, const std::string& field, bool allow_invalid_utf8,
                const TextPieceFn& piece) {
  std::int64_t documents = 0;
  for (const TextFile& file : files) {
    Reading reading(file, documents, piece);
    if (file.json_lines) {
      reading.json_lines(field);
    } else {
      reading.text(allow_invalid_utf8);
    }
  }
}

void read_texts(const std::vector<std::string>& inputs, const std::string& field, const TextPieceFn& piece,
                bool allow_invalid_utf8) {
  read_texts(list_texts(inputs), field, allow_invalid_utf8, piece);
}

}  // namespace sieve
