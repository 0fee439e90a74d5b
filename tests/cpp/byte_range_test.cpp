#include "base/byte_range.h"

#include <limits>

#include "base/checked_math.h"
#include "test_macros.h"

namespace ckpt_streamer {
namespace {

constexpr uint64_t kLargest = std::numeric_limits<uint64_t>::max();

TEST(intersect_of_overlapping_ranges_is_the_common_part) {
  EXPECT_EQ(intersect({0, 10}, {5, 20}) == (ByteRange{5, 10}), true);
  EXPECT_EQ(intersect({5, 20}, {0, 10}) == (ByteRange{5, 10}), true);
}

TEST(a_hull_is_around_both_and_empty_ranges_add_nothing) {
  EXPECT_EQ(hull_of({8, 9}, {0, 5}) == (ByteRange{0, 9}), true);
  EXPECT_EQ(hull_of({0, 10}, {5, 7}) == (ByteRange{0, 10}), true);
  EXPECT_EQ(hull_of({}, {5, 7}) == (ByteRange{5, 7}), true);
  EXPECT_EQ(hull_of({5, 7}, {3, 3}) == (ByteRange{5, 7}), true);
}

TEST(intersect_of_disjoint_ranges_is_empty) {
  EXPECT(intersect({0, 5}, {5, 9}).empty());
  EXPECT(intersect({8, 9}, {0, 5}).empty());
}

TEST(round_outward_covers_every_touched_block) {
  EXPECT_EQ(round_outward({4095, 4097}, 4096) == (ByteRange{0, 8192}), true);
  EXPECT_EQ(round_outward({4096, 8192}, 4096) == (ByteRange{4096, 8192}), true);
}

TEST(round_up_saturates_instead_of_wrapping) {
  EXPECT_EQ(round_up(kLargest, 4096), kLargest - 4095);
  EXPECT_EQ(round_up(kLargest - 4095, 4096), kLargest - 4095);
}

TEST(checked_arithmetic_reports_overflow) {
  EXPECT_EQ(checked_add(1, 2).value(), uint64_t{3});
  EXPECT(!checked_add(kLargest, 1).has_value());
  EXPECT_EQ(checked_mul(3, 5).value(), uint64_t{15});
  EXPECT(!checked_mul(kLargest / 2, 3).has_value());
}

}  // namespace
}  // namespace ckpt_streamer
