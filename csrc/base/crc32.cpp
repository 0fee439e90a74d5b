#include "base/crc32.h"

#include <array>

namespace ckpt_streamer {
namespace {

constexpr uint32_t kPolynomial = 0xEDB88320;
constexpr size_t kSliceBytes = 16;

// kTables[k][b]: what byte b adds to the CRC with k zero bytes behind it.
// Looking up 16 bytes at once leaves one step in the chain of dependent ones.
using Tables = std::array<std::array<uint32_t, 256>, kSliceBytes>;

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = crc >> 1 ^ ((crc & 1) != 0 ? kPolynomial : 0);
    }
    tables[0][byte] = crc;
  }
  for (size_t k = 1; k < kSliceBytes; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t crc = tables[k - 1][byte];
      tables[k][byte] = crc >> 8 ^ tables[0][crc & 0xFF];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

// A little-endian word of 4 bytes.
template <size_t kWord>
uint32_t load_word(std::span<const std::byte> bytes) noexcept {
  const auto byte = [&](size_t i) {
    return std::to_integer<uint32_t>(bytes[4 * kWord + i]);
  };
  return byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
}

// What a word adds to the CRC behind the 16 bytes.
template <size_t kWord>
uint32_t slice(uint32_t word) noexcept {
  constexpr size_t kLast = kSliceBytes - 1 - 4 * kWord;
  return kTables[kLast][word & 0xFF] ^ kTables[kLast - 1][word >> 8 & 0xFF] ^
         kTables[kLast - 2][word >> 16 & 0xFF] ^ kTables[kLast - 3][word >> 24];
}

}  // namespace

uint32_t crc32(std::span<const std::byte> bytes, uint32_t crc) noexcept {
  crc = ~crc;
  while (bytes.size() >= kSliceBytes) {
    // The CRC so far falls on the first word.
    crc = slice<0>(load_word<0>(bytes) ^ crc) ^ slice<1>(load_word<1>(bytes)) ^
          slice<2>(load_word<2>(bytes)) ^ slice<3>(load_word<3>(bytes));
    bytes = bytes.subspan(kSliceBytes);
  }
  for (const std::byte byte : bytes) {
    crc = crc >> 8 ^ kTables[0][(crc ^ std::to_integer<uint32_t>(byte)) & 0xFF];
  }
  return ~crc;
}

}  // namespace ckpt_streamer
