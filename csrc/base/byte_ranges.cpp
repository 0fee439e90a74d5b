#include "base/byte_ranges.h"

#include <algorithm>
#include <numeric>

namespace ckpt_streamer {

uint64_t total_bytes(std::span<const ByteRange> ranges) noexcept {
  return std::accumulate(
      ranges.begin(),
      ranges.end(),
      uint64_t{0},
      [](uint64_t sum, const ByteRange& range) {
        return sum + range.size_bytes();
      });
}

void append_parts_outside(
    const ByteRange& range,
    std::span<const ByteRange> holes,
    std::vector<ByteRange>& parts) {
  uint64_t cursor = range.begin;
  for (const ByteRange& hole : holes) {
    if (hole.begin >= range.end) {
      break;
    }
    if (cursor < hole.begin) {
      parts.push_back({cursor, hole.begin});
    }
    cursor = std::max(cursor, hole.end);
  }
  if (cursor < range.end) {
    parts.push_back({cursor, range.end});
  }
}

}  // namespace ckpt_streamer
