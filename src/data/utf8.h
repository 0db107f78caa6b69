// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>

namespace sieve {

// Length of the valid sequence at the start of `text` (not empty): 1..4, or 0 where it is not valid.
inline std::size_t utf8_sequence(std::string_view text) {
  auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  auto tail = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return tail(1) ? 2 : 0;
  if (lead < 0xF0) {
    const bool second = lead == 0xE0 ? tail(1, 0xA0) : lead == 0xED ? tail(1, 0x80, 0x9F) : tail(1);
    return second && tail(2) ? 3 : 0;
  }
  if (lead < 0xF5) {
    const bool second = lead == 0xF0 ? tail(1, 0x90) : lead == 0xF4 ? tail(1, 0x80, 0x8F) : tail(1);
    return second && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

// Length of the longest valid prefix.
inline std::size_t valid_utf8_prefix(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    while (i + 8 <= text.size()) {  // eight ASCII bytes at a time
      std::uint64_t word;
      std::memcpy(&word, text.data() + i, 8);
      if (word & 0x8080808080808080ull) break;
      i += 8;
    }
    if (i == text.size()) break;
    const std::size_t n = utf8_sequence(text.substr(i));
    if (n == 0) break;
    i += n;
  }
  return i;
}

// Length of the run of bytes at the start of `text` that belong to no valid sequence.
inline std::size_t invalid_utf8_prefix(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size() && utf8_sequence(text.substr(i)) == 0) ++i;
  return i;
}

// True where `text`, which is not a valid sequence, may become one by adding bytes.
inline bool utf8_may_continue(std::string_view text) {
  if (text.empty() || text.size() > 3) return text.empty();
  // Completing with the smallest and the largest tail covers the leads with a restricted second byte.
  char buffer[4] = {};
  for (const char tail : {'\x80', '\x9F', '\xA0', '\xBF'}) {
    std::memcpy(buffer, text.data(), text.size());
    std::memset(buffer + text.size(), tail, 4 - text.size());
    for (std::size_t n = text.size() + 1; n <= 4; ++n) {
      if (utf8_sequence({buffer, n}) == n) return true;
    }
  }
  return false;
}

}  // namespace sieve
