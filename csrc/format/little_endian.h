// Little-endian integers out of raw bytes, on any host.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

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

// As above, of the size of the type: one load where the host is little-endian.
// REQUIRES: bytes[0, sizeof(T)) is readable.
template <std::unsigned_integral T>
[[nodiscard]] T load_as(const std::byte* bytes) noexcept {
  if constexpr (std::endian::native == std::endian::little) {
    T value = 0;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
  } else {
    return static_cast<T>(load_little_endian(bytes, sizeof(T)));
  }
}

[[nodiscard]] inline uint16_t load_u16(const std::byte* bytes) noexcept {
  return load_as<uint16_t>(bytes);
}

[[nodiscard]] inline uint32_t load_u32(const std::byte* bytes) noexcept {
  return load_as<uint32_t>(bytes);
}

[[nodiscard]] inline uint64_t load_u64(const std::byte* bytes) noexcept {
  return load_as<uint64_t>(bytes);
}

}  // namespace ckpt_streamer::format
