#include "base/bfloat16.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "test_macros.h"

namespace ckpt_streamer {
namespace {

constexpr uint16_t kNaN = 0xABCD;

float as_float(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

// The nearer of the two neighbours, the even one of both, by comparing.
uint16_t nearest(uint32_t bits) {
  const double value = as_float(bits);
  const auto below = static_cast<uint16_t>(bits >> 16);
  const auto above = static_cast<uint16_t>(below + 1);
  const double low = as_float(uint32_t{below} << 16);
  // Infinity counts as the number that would follow the largest one.
  const bool overflows = (above & 0x7FFF) == 0x7F80;
  const double high =
      overflows ? std::copysign(std::ldexp(1.0, 128), value)
                : static_cast<double>(as_float(uint32_t{above} << 16));
  const double to_low = std::abs(value - low);
  const double to_high = std::abs(high - value);
  if (to_low != to_high) {
    return to_low < to_high ? below : above;
  }
  return below % 2 == 0 ? below : above;
}

TEST(bfloat16_is_the_nearest_and_even_at_ties) {
  std::vector<uint32_t> bits;
  for (uint32_t upper = 0; upper < 65536; ++upper) {
    for (const uint32_t lower : {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF}) {
      bits.push_back(upper << 16 | lower);
    }
  }
  std::vector<uint16_t> rounded(bits.size());
  round_to_bfloat16(bits, kNaN, rounded.data());
  for (size_t i = 0; i < bits.size(); ++i) {
    const bool is_infinite = std::isinf(as_float(bits[i]));
    const uint16_t expected = std::isnan(as_float(bits[i])) ? kNaN
                              : is_infinite
                                  ? static_cast<uint16_t>(bits[i] >> 16)
                                  : nearest(bits[i]);
    EXPECT_EQ(rounded[i], expected);
  }
}

TEST(bfloat16_of_any_count_writes_no_more) {
  for (size_t count = 0; count < 100; ++count) {
    const std::vector<uint32_t> bits(count, 0x3F800000);
    std::vector<uint16_t> rounded(count + 1, 7);
    round_to_bfloat16(bits, kNaN, rounded.data());
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(rounded[i], 0x3F80);
    }
    EXPECT_EQ(rounded[count], 7);
  }
}

}  // namespace
}  // namespace ckpt_streamer
