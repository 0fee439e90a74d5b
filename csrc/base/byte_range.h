// Half-open byte ranges [begin, end), of addresses or of file offsets.
//
// Two roundings with two names, never one for both uses: hints and budgets
// round outward (what may be touched), drops round inward or against what is
// live (what must not be touched).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace ckpt_streamer {

struct ByteRange {
  uint64_t begin = 0;
  uint64_t end = 0;

  [[nodiscard]] constexpr uint64_t size_bytes() const noexcept {
    return end - begin;
  }
  [[nodiscard]] constexpr bool empty() const noexcept {
    return begin >= end;
  }
  [[nodiscard]] constexpr bool contains(const ByteRange& other) const noexcept {
    return begin <= other.begin && other.end <= end;
  }
  friend constexpr bool operator==(
      const ByteRange&,
      const ByteRange&) noexcept = default;
};

// The common part; empty (begin == end) when there is none.
[[nodiscard]] constexpr ByteRange intersect(
    const ByteRange& left,
    const ByteRange& right) noexcept {
  const uint64_t begin = std::max(left.begin, right.begin);
  return {begin, std::max(begin, std::min(left.end, right.end))};
}

// The smallest range around both; an empty one adds nothing.
[[nodiscard]] constexpr ByteRange hull_of(
    const ByteRange& left,
    const ByteRange& right) noexcept {
  if (left.empty() || right.empty()) {
    return left.empty() ? right : left;
  }
  return {std::min(left.begin, right.begin), std::max(left.end, right.end)};
}

// REQUIRES: granularity_bytes is a power of two.
[[nodiscard]] constexpr uint64_t round_down(
    uint64_t value,
    uint64_t granularity_bytes) noexcept {
  return value & ~(granularity_bytes - 1);
}

// REQUIRES: granularity_bytes is a power of two.
// Saturates at the largest multiple that fits 64 bits.
[[nodiscard]] constexpr uint64_t round_up(
    uint64_t value,
    uint64_t granularity_bytes) noexcept {
  const uint64_t largest =
      round_down(std::numeric_limits<uint64_t>::max(), granularity_bytes);
  return value > largest
             ? largest
             : round_down(value + (granularity_bytes - 1), granularity_bytes);
}

// The smallest run of whole blocks that covers the range.
[[nodiscard]] constexpr ByteRange round_outward(
    const ByteRange& range,
    uint64_t granularity_bytes) noexcept {
  return {
      round_down(range.begin, granularity_bytes),
      round_up(range.end, granularity_bytes)};
}

}  // namespace ckpt_streamer
