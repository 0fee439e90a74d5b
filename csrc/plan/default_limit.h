// The limit of a stream whose user named none. Pure arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ckpt_streamer::plan {

inline constexpr uint64_t kSmallestDefaultLimitBytes = uint64_t{16} << 20;
inline constexpr uint64_t kLargestDefaultLimitBytes = uint64_t{1024} << 20;

// A quarter of what is available, in whole MiB, from 16 MiB to 1024 MiB: the
// rest is for what the reader makes of the tensors, and larger windows are no
// faster.
[[nodiscard]] constexpr uint64_t default_limit_bytes(
    uint64_t available_bytes) noexcept {
  constexpr uint64_t kMib = uint64_t{1} << 20;
  return std::clamp(
      available_bytes / 4 / kMib * kMib,
      kSmallestDefaultLimitBytes,
      kLargestDefaultLimitBytes);
}

}  // namespace ckpt_streamer::plan
