#include "data/bpe_model.h"

#include <algorithm>

#include "core/error.h"
#include "io/file.h"

namespace sieve {
namespace {

constexpr std::uint16_t kNoByte = 256;

std::array<std::uint16_t, 324> make_reverse() {
  std::array<std::uint16_t, 324> out{};
  out.fill(kNoByte);
  for (std::uint16_t b = 0; b < 256; ++b) out[byte_characters()[b]] = b;
  return out;
}

void put(std::string& out, std::uint64_t value) {
  for (int i = 0; i < 8; ++i) out += static_cast<char>(value >> (8 * i));
}

}  // namespace

const std::array<std::uint16_t, 256>& byte_characters() {
  static const auto table = [] {
    std::array<std::uint16_t, 256> t{};
    std::uint16_t next = 256;
    for (std::uint16_t b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      t[b] = printable ? b : next++;
    }
    return t;
  }();
  return table;
}

std::string bytes_to_characters(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const unsigned u = byte_characters()[static_cast<unsigned char>(c)];
    if (u < 0x80) {
      out += static_cast<char>(u);
    } else {
      out += static_cast<char>(0xC0 | (u >> 6));
      out += static_cast<char>(0x80 | (u & 0x3F));
    }
  }
  return out;
}

std::optional<std::string> characters_to_bytes(std::string_view characters) {
  static const auto reverse = make_reverse();
  std::string out;
  for (std::size_t i = 0; i < characters.size(); ++i) {
    unsigned u = static_cast<unsigned char>(characters[i]);
    if (u >= 0x80) {
      if (u < 0xC2 || u > 0xC5 || i + 1 == characters.size()) return std::nullopt;  // the table ends below U+0144
      u = ((u & 0x1F) << 6) | (static_cast<unsigned char>(characters[++i]) & 0x3F);
    }
    if (u >= reverse.size() || reverse[u] == kNoByte) return std::nullopt;
    out += static_cast<char>(reverse[u]);
  }
  return out;
}

std::uint64_t BpeModel::hash() const {
  std::string all = "sieve byte-level BPE 1";
  all += nfc ? 'n' : '-';
  all += ignore_merges ? 'i' : '-';
  put(all, splits.size());
  for (const std::string& s : splits) {
    put(all, s.size());
    all += s;
  }
  put(all, tokens.size());
  for (const Token& t : tokens) {
    all += static_cast<char>(t.kind);
    all += t.normalized ? 'n' : '-';
    put(all, t.bytes.size());
    all += t.bytes;
  }
  put(all, merges.size());
  for (const Merge& m : merges) {
    put(all, static_cast<std::uint64_t>(m.left));
    put(all, static_cast<std::uint64_t>(m.right));
  }
  return xxh3(all);
}

std::optional<std::int32_t> BpeModel::usual_separator() const {
  for (const std::string_view name :
       {"<|endoftext|>", "<|end_of_text|>", "<\uFF5Cend\u2581of\u2581sentence\uFF5C>", "</s>", "<eos>"}) {
    for (std::size_t id = 0; id < tokens.size(); ++id) {
      if (tokens[id].kind == Kind::special && tokens[id].bytes == name) return static_cast<std::int32_t>(id);
    }
  }
  return std::nullopt;
}

}  // namespace sieve
