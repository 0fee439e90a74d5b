// Unsigned arithmetic that reports overflow instead of wrapping.
#pragma once

#include <cstdint>
#include <optional>

namespace ckpt_streamer {

[[nodiscard]] inline std::optional<uint64_t> checked_add(
    uint64_t left,
    uint64_t right) noexcept {
  uint64_t sum = 0;
  if (__builtin_add_overflow(left, right, &sum)) {
    return std::nullopt;
  }
  return sum;
}

[[nodiscard]] inline std::optional<uint64_t> checked_mul(
    uint64_t left,
    uint64_t right) noexcept {
  uint64_t product = 0;
  if (__builtin_mul_overflow(left, right, &product)) {
    return std::nullopt;
  }
  return product;
}

}  // namespace ckpt_streamer
