#include "base/bfloat16.h"

#include <cstddef>

// GCC vectorises loops of unknown length from O3 on only, and for the oldest
// processor of the architecture if not told otherwise.
#if defined(__GNUC__) && !defined(__clang__)
#define CKPT_STREAMER_VECTORISED gnu::optimize("O3")
#else
#define CKPT_STREAMER_VECTORISED
#endif

namespace ckpt_streamer {
namespace {

[[gnu::always_inline]] inline void round_all(
    const uint32_t* __restrict bits,
    size_t count,
    uint16_t nan,
    uint16_t* __restrict destination) noexcept {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t value = bits[i];
    const uint32_t rounded = (value + 0x7FFF + ((value >> 16) & 1)) >> 16;
    destination[i] = (value & 0x7FFFFFFF) > 0x7F800000
                         ? nan
                         : static_cast<uint16_t>(rounded);
  }
}

[[CKPT_STREAMER_VECTORISED]] void round_for_any_processor(
    const uint32_t* bits,
    size_t count,
    uint16_t nan,
    uint16_t* destination) noexcept {
  round_all(bits, count, nan, destination);
}

#ifdef __x86_64__
[[gnu::target("avx2"), CKPT_STREAMER_VECTORISED]] void round_with_avx2(
    const uint32_t* bits,
    size_t count,
    uint16_t nan,
    uint16_t* destination) noexcept {
  round_all(bits, count, nan, destination);
}
#endif

}  // namespace

void round_to_bfloat16(
    std::span<const uint32_t> bits,
    uint16_t nan,
    uint16_t* destination) noexcept {
#ifdef __x86_64__
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (has_avx2) {
    round_with_avx2(bits.data(), bits.size(), nan, destination);
    return;
  }
#endif
  round_for_any_processor(bits.data(), bits.size(), nan, destination);
}

}  // namespace ckpt_streamer
