#include "base/byte_ranges.h"

#include "test_macros.h"

namespace ckpt_streamer {
namespace {

using Ranges = std::vector<ByteRange>;

Ranges parts_outside(const ByteRange& range, const Ranges& holes) {
  Ranges parts;
  append_parts_outside(range, holes, parts);
  return parts;
}

TEST(total_bytes_counts_common_parts_twice) {
  EXPECT_EQ(total_bytes({}), uint64_t{0});
  EXPECT_EQ(total_bytes(Ranges{{1, 3}, {2, 5}}), uint64_t{5});
}

TEST(parts_outside_holes) {
  EXPECT(parts_outside({10, 20}, {}) == (Ranges{{10, 20}}));
  EXPECT(parts_outside({10, 20}, {{0, 5}, {30, 40}}) == (Ranges{{10, 20}}));
  EXPECT(
      parts_outside({10, 20}, {{5, 12}, {14, 16}, {15, 17}, {19, 30}}) ==
      (Ranges{{12, 14}, {17, 19}}));
  EXPECT(parts_outside({10, 20}, {{10, 20}}).empty());
  EXPECT(
      parts_outside({10, 20}, {{5, 8}, {12, 13}}) ==
      (Ranges{{10, 12}, {13, 20}}));
  EXPECT(parts_outside({10, 10}, {}).empty());
}

}  // namespace
}  // namespace ckpt_streamer
