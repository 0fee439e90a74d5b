// madvise() on addresses that are numbers. POSIX.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>

#include "base/byte_range.h"

namespace ckpt_streamer::os {

[[nodiscard]] inline void* pointer_to(uint64_t address) noexcept {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): addresses are kept as numbers
  return reinterpret_cast<void*>(address);
}

// Returns 0 or an errno.
inline int advise(const ByteRange& range, int advice) noexcept {
  return ::madvise(pointer_to(range.begin), range.size_bytes(), advice) == 0
             ? 0
             : errno;
}

}  // namespace ckpt_streamer::os
