// Limits of the C++ interface as the ops take them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace ckpt_streamer {

// More than the ops take is no limit either.
inline int64_t op_limit(uint64_t memory_limit_bytes) {
  return static_cast<int64_t>(std::min(
      memory_limit_bytes,
      uint64_t{std::numeric_limits<int64_t>::max()}));
}

}  // namespace ckpt_streamer
