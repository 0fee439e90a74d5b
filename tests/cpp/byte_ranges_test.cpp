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

TEST(a_set_of_ranges_joins_what_touches) {
  ByteRangeSet set;
  set.add({10, 20});
  set.add({30, 40});
  set.add({50, 60});
  set.add({5, 5});
  EXPECT(set.ranges() == (Ranges{{10, 20}, {30, 40}, {50, 60}}));
  set.add({20, 25});
  set.add({35, 36});
  EXPECT(set.ranges() == (Ranges{{10, 25}, {30, 40}, {50, 60}}));
  set.add({28, 55});
  EXPECT(set.ranges() == (Ranges{{10, 25}, {28, 60}}));
  set.add({0, 2});
  set.add({70, 80});
  EXPECT(set.ranges() == (Ranges{{0, 2}, {10, 25}, {28, 60}, {70, 80}}));
}

TEST(a_set_of_ranges_says_what_is_removed) {
  ByteRangeSet set;
  Ranges removed;
  set.remove({0, 100}, removed);
  for (const ByteRange& range : Ranges{{10, 20}, {30, 40}, {50, 60}}) {
    set.add(range);
  }
  set.remove({20, 30}, removed);
  set.remove({60, 70}, removed);
  set.remove({15, 15}, removed);
  EXPECT(removed.empty());
  set.remove({12, 14}, removed);
  EXPECT(removed == (Ranges{{12, 14}}));
  EXPECT(set.ranges() == (Ranges{{10, 12}, {14, 20}, {30, 40}, {50, 60}}));
  removed.clear();
  set.remove({16, 55}, removed);
  EXPECT(removed == (Ranges{{16, 20}, {30, 40}, {50, 55}}));
  EXPECT(set.ranges() == (Ranges{{10, 12}, {14, 16}, {55, 60}}));
  set.remove({0, 100}, removed);
  EXPECT(set.ranges().empty());
}

}  // namespace
}  // namespace ckpt_streamer
