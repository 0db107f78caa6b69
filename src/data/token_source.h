// A stream of tokens with random access: what samplers, loaders and evaluation read from.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace sieve {

class TokenSource {
 public:
  virtual ~TokenSource() = default;
  virtual std::string name() const = 0;  // for messages
  virtual std::int64_t tokens() const = 0;
  virtual std::int64_t documents() const = 0;
  // Tokens [begin, begin + out.size()) as i32. Outside [0, tokens()): Exit::internal. Thread-safe.
  virtual void read(std::int64_t begin, std::span<std::int32_t> out) const = 0;
  // Appends the positions in [begin, end) at which a document starts, ascending. Thread-safe.
  virtual void document_starts(std::int64_t begin, std::int64_t end, std::vector<std::int64_t>& out) const = 0;
};

// Tokens held in memory, for text that is encoded on the spot and for tests. `starts`: ascending, first 0 (empty: one
// document).
class MemoryTokens final : public TokenSource {
 public:
  MemoryTokens(std::string name, std::vector<std::int32_t> tokens, std::vector<std::int64_t> starts = {});
  std::string name() const override { return name_; }
  std::int64_t tokens() const override { return static_cast<std::int64_t>(tokens_.size()); }
  std::int64_t documents() const override { return static_cast<std::int64_t>(starts_.size()); }
  void read(std::int64_t begin, std::span<std::int32_t> out) const override;
  void document_starts(std::int64_t begin, std::int64_t end, std::vector<std::int64_t>& out) const override;

 private:
  std::string name_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int64_t> starts_;
};

}  // namespace sieve
