#include <cerrno>

#include "os/page_cache.h"

namespace ckpt_streamer::os {

bool is_cached(uint64_t) noexcept {
  return true;
}

uint64_t prefetch_block_bytes() noexcept {
  return uint64_t{2} << 20;
}

bool prefetch(const BackingFile&, uint64_t) noexcept {
  return false;
}

int drop_cached(const BackingFile&, const ByteRange&) noexcept {
  return ENOTSUP;
}

uint64_t cached_bytes(const BackingFile&, const ByteRange&) noexcept {
  return 0;
}

}  // namespace ckpt_streamer::os
