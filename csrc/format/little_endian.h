// Little-endian integers out of raw bytes, on any host.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ckpt_streamer::format {

// REQUIRES: bytes[0, byte_count) is readable, byte_count <= 8.
[[nodiscard]] inline uint64_t load_little_endian(
    const std::byte* bytes,
    size_t byte_count) noexcept {
  uint64_t value = 0;
  for (size_t i = 0; i < byte_count; ++i) {
    value |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  }
  return value;
}

[[nodiscard]] inline uint16_t load_u16(const std::byte* bytes) noexcept {
  return static_cast<uint16_t>(load_little_endian(bytes, 2));
}

[[nodiscard]] inline uint32_t load_u32(const std::byte* bytes) noexcept {
  return static_cast<uint32_t>(load_little_endian(bytes, 4));
}

[[nodiscard]] inline uint64_t load_u64(const std::byte* bytes) noexcept {
  return load_little_endian(bytes, 8);
}

}  // namespace ckpt_streamer::format
