#include "tensor/staging.h"

#include <cstring>

#include "core/error.h"

namespace sieve {

Staging::Staging(const Stream& stream, int slots) : stream_(stream) {
  require(slots >= 1, "staging", slots, " slots");
  if (stream.device.is_cpu()) return;
  for (int i = 0; i < slots; ++i) slots_.push_back({Tensor(), Event(stream.device)});
}

Tensor Staging::upload(const Tensor& host) {
  if (slots_.empty() || !host.defined()) return host;
  const Tensor dense = host.contiguous();
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  const auto bytes = static_cast<std::int64_t>(dense.nbytes());
  if (slot.buffer.defined()) slot.copied.synchronize();  // long done, unless the host is far ahead
  if (!slot.buffer.defined() || slot.buffer.numel() < bytes) slot.buffer = empty_pinned({bytes}, DType::u8);
  std::memcpy(slot.buffer.raw(), dense.raw(), dense.nbytes());
  Tensor out = empty(dense.shape(), dense.dtype(), stream_);
  copy_bytes(out.raw(), stream_, slot.buffer.raw(), slot.buffer.stream(), dense.nbytes());
  slot.copied.record(stream_);
  return out;
}

}  // namespace sieve
