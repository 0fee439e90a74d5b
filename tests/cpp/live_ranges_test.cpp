#include "stream/live_ranges.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "test_macros.h"

namespace ckpt_streamer::stream {
namespace {

std::vector<ByteRange> free_of(const LiveRanges& ranges, ByteRange range) {
  std::vector<ByteRange> parts;
  ranges.append_free_parts(range, parts);
  return parts;
}

TEST(what_others_have_live_is_left_out) {
  LiveRanges one({100, 200});
  EXPECT(!one.has_neighbours());
  std::optional<LiveRanges> two(std::in_place, ByteRange{150, 300});
  const LiveRanges elsewhere({200, 300});
  EXPECT(one.has_neighbours());
  const std::vector<ByteRange> live = {{150, 160}, {180, 190}};
  two->set(live);
  one.set(live);
  const std::vector<ByteRange> expected = {{140, 150}, {160, 180}, {190, 195}};
  EXPECT(free_of(one, {140, 195}) == expected);
  EXPECT(free_of(one, {150, 160}).empty());
  EXPECT(one.is_live_elsewhere({159, 161}));
  EXPECT(!one.is_live_elsewhere({160, 180}));
  two->add({155, 185});
  EXPECT(
      free_of(one, {140, 195}) ==
      (std::vector<ByteRange>{{140, 150}, {190, 195}}));
  two->set({});
  EXPECT(free_of(one, {140, 195}) == (std::vector<ByteRange>{{140, 195}}));
  two.reset();
  EXPECT(!one.has_neighbours());
}

TEST(a_child_finds_what_is_live_whole) {
  LiveRanges one({0, 100});
  LiveRanges two({0, 100});
  std::atomic<bool> is_done = false;
  std::thread busy([&] {
    const std::vector<ByteRange> live = {{10, 20}, {30, 40}};
    while (!is_done) {
      two.set(live);
      two.set({});
    }
  });
  for (int i = 0; i < 50; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      const size_t count = free_of(one, {0, 100}).size();
      ::_exit(count == 1 || count == 3 ? 0 : 1);
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  is_done = true;
  busy.join();
}

}  // namespace
}  // namespace ckpt_streamer::stream
