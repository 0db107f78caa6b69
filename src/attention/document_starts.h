// Which documents a row packs, as the ops of this folder read it.
#pragma once

#include <cstdint>
#include <string_view>

#include "tensor/tensor.h"

namespace sieve {

// document_starts, a contiguous copy if it is a strided view; undefined stays undefined (one document a row). Error
// (Exit::internal) under the op's name unless it is i32 (B, T) on `device`, that of the op, and every entry is its own
// position (a document starts) or that of the position before it (the document goes on). Entries on a GPU are not read
// (that would wait for it): who makes them there is answerable.
Tensor checked_starts(const Tensor& document_starts, std::int64_t B, std::int64_t T, const Device& device,
                      std::string_view op);

}  // namespace sieve
