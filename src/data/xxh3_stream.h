// XXH3-64 of bytes that come in pieces.
#pragma once

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "core/error.h"

namespace sieve {

class Xxh3Stream {
 public:
  Xxh3Stream() : state_(XXH3_createState(), XXH3_freeState) {
    if (!state_) fail(Exit::memory, "hash", "no memory for a hash state");
    reset();
  }
  void reset() { XXH3_64bits_reset(state_.get()); }
  void update(const void* data, std::size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
  void update(std::string_view text) { update(text.data(), text.size()); }
  std::uint64_t digest() const { return XXH3_64bits_digest(state_.get()); }

 private:
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
};

}  // namespace sieve
