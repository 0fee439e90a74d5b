#include "plan/window.h"

#include <random>

#include "test_macros.h"

namespace ckpt_streamer::plan {
namespace {

constexpr uint64_t kBlock = 64;

TEST(a_window_counts_whole_blocks) {
  Window window({1000, kBlock, 0});
  window.add({10, 20});
  EXPECT_EQ(window.extent_bytes(), kBlock);
  window.add({63, 65});
  EXPECT_EQ(window.extent_bytes(), 2 * kBlock);
}

TEST(a_block_is_counted_once_however_many_spans_share_it) {
  Window window({1000, kBlock, 0});
  for (uint64_t begin = 0; begin < kBlock; ++begin) {
    window.add({begin, begin + 1});
  }
  EXPECT_EQ(window.extent_bytes(), kBlock);
  EXPECT_EQ(window.extents().size(), size_t{1});
}

TEST(extents_merge_in_any_order) {
  Window window({10000, kBlock, 0});
  window.add({4 * kBlock, 5 * kBlock});
  window.add({0, kBlock});
  EXPECT_EQ(window.extents().size(), size_t{2});
  window.add({kBlock, 4 * kBlock});
  EXPECT_EQ(window.extents().size(), size_t{1});
  EXPECT_EQ(window.extent_bytes(), 5 * kBlock);
}

TEST(an_empty_window_takes_what_is_larger_than_the_limit) {
  Window window({kBlock, kBlock, 0});
  EXPECT(window.fits({0, 100 * kBlock}));
  window.add({0, 100 * kBlock});
  EXPECT(window.fits({kBlock, 2 * kBlock}));  // a view of it
  EXPECT(!window.fits({100 * kBlock, 101 * kBlock}));
}

TEST(an_empty_span_fits_always_and_adds_nothing) {
  Window window({kBlock, kBlock, 0});
  window.add({0, 2 * kBlock});
  EXPECT(window.fits({}));
  window.add({});
  EXPECT_EQ(window.extent_bytes(), 2 * kBlock);
}

TEST(plan_of_nothing_has_no_windows) {
  EXPECT(plan_windows({}, {100, kBlock, 0}).empty());
}

TEST(plan_closes_a_window_before_the_limit_is_exceeded) {
  const std::vector<ByteRange> spans = {
      {0, 64},
      {64, 128},
      {128, 192},
      {192, 256}};
  EXPECT_EQ(
      plan_windows(spans, {128, kBlock, 0}) == (std::vector<size_t>{2, 4}),
      true);
}

TEST(plan_gives_tensors_without_memory_no_window_of_their_own) {
  const std::vector<ByteRange> spans = {{}, {}, {0, 64}, {}, {64, 128}};
  EXPECT_EQ(
      plan_windows(spans, {64, kBlock, 0}) == (std::vector<size_t>{4, 5}),
      true);
  EXPECT_EQ(
      plan_windows({spans.data(), 2}, {64, kBlock, 0}) ==
          (std::vector<size_t>{2}),
      true);
}

// Against the definition, computed block by block.
TEST(random_plans_keep_the_limit_and_lose_nothing) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 300; ++round) {
    std::vector<ByteRange> spans;
    uint64_t cursor = 0;
    for (int i = 0; i < 40; ++i) {
      const uint64_t begin = cursor - std::min(cursor, random() % 100);
      spans.push_back({begin, begin + random() % 400});
      cursor = begin + random() % 500;
    }
    const uint64_t limit = 64 + random() % 1000;
    const std::vector<size_t> ends = plan_windows(spans, {limit, kBlock, 0});
    EXPECT_EQ(ends.back(), spans.size());
    size_t begin = 0;
    for (const size_t end : ends) {
      EXPECT(begin < end);
      std::map<uint64_t, bool> blocks;
      size_t filled = 0;
      uint64_t before_last = 0;
      for (size_t i = begin; i < end; ++i) {
        if (!spans[i].empty()) {
          ++filled;
          before_last = blocks.size() * kBlock;
        }
        const ByteRange extent = round_outward(spans[i], kBlock);
        for (uint64_t at = extent.begin; !spans[i].empty() && at < extent.end;
             at += kBlock) {
          blocks[at] = true;
        }
      }
      const uint64_t bytes = blocks.size() * kBlock;
      // Over the limit only where the first alone is, and nothing was added.
      EXPECT(bytes <= limit || filled <= 1 || bytes == before_last);
      begin = end;
    }
  }
}

TEST(room_ahead_is_a_quarter_unless_a_span_needs_it) {
  constexpr uint64_t kMib = uint64_t{1} << 20;
  const WindowRules rules{64 * kMib, 2 * kMib, 0};
  const std::vector<ByteRange> small = {{0, 4 * kMib}, {4 * kMib, 5 * kMib}};
  EXPECT_EQ(with_room(rules, small, 16 * kMib).memory_limit_bytes, 48 * kMib);
  EXPECT_EQ(with_room(rules, {}, 16 * kMib).memory_limit_bytes, 48 * kMib);
  // Rounded to blocks, as they count; what no limit holds changes nothing.
  const std::vector<ByteRange> larger = {
      {kMib, 51 * kMib},
      {100 * kMib, 200 * kMib}};
  EXPECT_EQ(with_room(rules, larger, 16 * kMib).memory_limit_bytes, 52 * kMib);
  EXPECT_EQ(with_room(rules, larger, 16 * kMib).block_bytes, 2 * kMib);
}

}  // namespace
}  // namespace ckpt_streamer::plan
