#include "stream/map_ahead.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "os/residency.h"
#include "os/threads.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::stream {
namespace {

using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kSize = 64 * kMiB;

TEST(cached_pages_are_mapped_ahead_and_no_others) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  const uint64_t begin = mapping.range().begin;
  // Neither at a huge page's edge.
  const ByteRange range = {begin + 3 * kMiB, begin + 17 * kMiB};
  os::advise_huge_pages({&range, 1}, os::HugePages::kAvoid);
  MapAhead map_ahead;
  map_ahead.begin({range});
  EXPECT(mapping.comes_to_hold(range.size_bytes()));
  map_ahead.stop();
  EXPECT_EQ(mapping.resident().clean_bytes, range.size_bytes());
  EXPECT_EQ(mapping.resident().written_bytes, uint64_t{0});
}

TEST(after_the_end_nothing_is_mapped_any_more) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  mapping.touch();  // cached
  const ByteRange range = mapping.range();
  os::Residency residency;
  MapAhead map_ahead;
  for (int i = 0; i < 200; ++i) {
    map_ahead.begin({range});
    std::this_thread::sleep_for(std::chrono::microseconds(i));
    map_ahead.end();
    residency.drop_resident({&range, 1}, os::OtherWriters::kNone);
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    EXPECT_EQ(residency.count_resident({&range, 1}), uint64_t{0});
  }
  map_ahead.end();
  map_ahead.stop();
  map_ahead.stop();
  map_ahead.begin({range});  // anew
  EXPECT(mapping.comes_to_hold(kSize));
}

TEST(pages_written_to_stay_when_they_are_mapped_ahead) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  mapping.bytes()[5 * kMiB] = 'w';
  MapAhead map_ahead;
  map_ahead.begin({mapping.range()});
  EXPECT(mapping.comes_to_hold(kSize - os::page_size_bytes()));
  EXPECT_EQ(mapping.bytes()[5 * kMiB], 'w');
  EXPECT_EQ(mapping.resident().written_bytes, os::page_size_bytes());
}

TEST(past_the_end_of_a_truncated_file_mapping_ahead_ends) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  EXPECT_EQ(::truncate(file.path().c_str(), static_cast<off_t>(8 * kMiB)), 0);
  MapAhead map_ahead;
  map_ahead.begin({mapping.range()});
  EXPECT(mapping.comes_to_hold(8 * kMiB));
  map_ahead.stop();
  EXPECT_EQ(mapping.resident().clean_bytes, 8 * kMiB);
}

#ifndef THREAD_SANITIZED  // TSan has a thread of its own

TEST(a_thread_that_maps_ahead_is_none_that_may_write) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  // With one that waits, ours must hold no lock that it may wait for.
  std::mutex mutex;
  std::condition_variable changed;
  bool is_over = false;
  std::thread waiting([&] {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return is_over; });
  });
  os::Residency residency;
  const ByteRange range = mapping.range();
  os::ThreadCensus census;
  const auto no_workers = [] { return std::vector<int64_t>(); };
  for (int i = 0; i < 5000 && !census.others_at_rest(no_workers); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  MapAhead map_ahead;
  map_ahead.begin({mapping.range()});
  const bool is_under_way = mapping.comes_to_hold(kSize);
  int at_rest_count = 0;
  for (int i = 0; i < 50; ++i) {
    map_ahead.end();
    residency.drop_resident({&range, 1}, os::OtherWriters::kNone);
    map_ahead.begin({range});
    at_rest_count += census.others_at_rest(no_workers) ? 1 : 0;
    map_ahead.end();
    at_rest_count += census.others_at_rest(no_workers) ? 1 : 0;
  }
  {
    const std::lock_guard lock(mutex);
    is_over = true;
  }
  changed.notify_one();
  waiting.join();
  EXPECT(is_under_way);
  EXPECT_EQ(at_rest_count, 100);
}

TEST(a_forked_child_maps_ahead_for_itself) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  MapAhead map_ahead;
  map_ahead.begin({mapping.range()});
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    map_ahead.end();
    const ByteRange range = mapping.range();
    os::Residency().drop_resident({&range, 1}, os::OtherWriters::kNone);
    map_ahead.begin({range});
    const bool is_mapped = mapping.comes_to_hold(kSize);
    map_ahead.stop();
    ::_exit(is_mapped ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

#endif  // THREAD_SANITIZED

}  // namespace
}  // namespace ckpt_streamer::stream
