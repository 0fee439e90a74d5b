#include "stream/watcher.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "os/threads.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::stream {
namespace {

using ckpt_streamer::testing::pattern_at;
using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kSize = 64 * kMiB;
constexpr uint64_t kLimit = 16 * kMiB;
constexpr os::ScanMethod kMethods[] = {
    os::ScanMethod::kBest,
    os::ScanMethod::kPagemap};

size_t thread_count() {
  namespace fs = std::filesystem;
  return static_cast<size_t>(std::distance(
      fs::directory_iterator("/proc/self/task"),
      fs::directory_iterator()));
}

std::atomic_ref<char> byte_at(const TestMapping& mapping, uint64_t offset) {
  return std::atomic_ref(const_cast<char*>(mapping.bytes())[offset]);
}

// False if it is not so within some seconds.
bool comes_to_hold(const TestMapping& mapping, uint64_t limit_bytes) {
  os::Residency residency;
  const ByteRange range = mapping.range();
  for (int i = 0; i < 20000; ++i) {
    if (residency.count_resident({&range, 1}) <= limit_bytes) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

TEST(what_is_read_is_given_back_behind_the_reader) {
  const TemporaryFile file(kSize);
  for (const auto huge_pages :
       {os::HugePages::kPrefer, os::HugePages::kAvoid}) {
    for (const os::ScanMethod method : kMethods) {
      const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
      const ByteRange range = mapping.range();
      os::advise_huge_pages({&range, 1}, huge_pages);
      Watcher watcher(method);
      watcher.watch({range}, kLimit);
      for (int pass = 0; pass < 2; ++pass) {
        mapping.touch();
        EXPECT(comes_to_hold(mapping, kLimit));
        EXPECT_EQ(mapping.bytes()[4097], pattern_at(4097));
      }
      watcher.stop();
      EXPECT(watcher.figures().evicted_bytes >= kSize - kLimit);
      EXPECT(watcher.figures().peak_resident_bytes > 0);
      EXPECT(watcher.figures().peak_resident_bytes <= kSize);
      EXPECT_EQ(watcher.figures().drop_error, 0);
    }
  }
}

TEST(what_is_mapped_twice_is_given_back_too) {
  const TemporaryFile file(kSize);
  const TestMapping other(file.path(), kSize, MAP_PRIVATE);
  other.touch();
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  Watcher watcher(os::ScanMethod::kBest);
  watcher.watch({mapping.range()}, kLimit);
  mapping.touch();
  EXPECT(comes_to_hold(mapping, kLimit));
}

TEST(what_fits_the_limit_by_half_is_left_alone) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  Watcher watcher(os::ScanMethod::kBest);
  watcher.watch({mapping.range()}, 16 * kSize);
  mapping.touch();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(mapping.resident().clean_bytes, kSize);
  EXPECT_EQ(watcher.figures().evicted_bytes, uint64_t{0});
}

TEST(what_is_live_elsewhere_does_not_come_again_at_each_look) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  const ByteRange range = mapping.range();
  const uint64_t middle = range.begin + kSize / 2;
  const LiveRanges own(range);
  LiveRanges elsewhere(range);
  elsewhere.set(std::vector<ByteRange>{{middle, range.end}});
  mapping.touch();
  const ByteRange first_half = {range.begin, middle};
  os::Residency().drop_resident({&first_half, 1});
  Watcher watcher(os::ScanMethod::kBest);
  watcher.leave_alone_what_is_live_elsewhere(own);
  watcher.watch({range}, kSize);
  // Less than half of the limit, slowly: nothing is to be evicted for that.
  constexpr uint64_t kRead = 24 * kMiB;
  for (uint64_t at = 0; at < kRead; at += 2 * kMiB) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    for (uint64_t i = at; i < at + 2 * kMiB; i += os::page_size_bytes()) {
      (void)mapping.bytes()[i];
    }
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(watcher.figures().evicted_bytes, uint64_t{0});
}

// How often the process's other thread has gone to sleep.
uint64_t sleep_count() {
  namespace fs = std::filesystem;
  for (const auto& task : fs::directory_iterator("/proc/self/task")) {
    if (task.path().filename() == std::to_string(::getpid())) {
      continue;
    }
    std::ifstream status(task.path() / "status");
    std::string line;
    while (std::getline(status, line)) {
      unsigned long long count = 0;
      if (std::sscanf(line.c_str(), "voluntary_ctxt_switches: %llu", &count) ==
          1) {
        return count;
      }
    }
  }
  return 0;
}

TEST(a_watcher_at_rest_is_woken_when_a_tensor_above_the_limit_is_live) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  Watcher watcher(os::ScanMethod::kBest);
  watcher.watch({mapping.range()}, kLimit);
  std::vector<std::chrono::steady_clock::duration> times;
  for (int i = 0; i < 11; ++i) {
    // As if all that is mapped were from before: it looks every 5 ms.
    watcher.set_live({}, ~uint64_t{0});
    mapping.touch();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const uint64_t evicted_before = watcher.figures().evicted_bytes;
    // From the moment at which it has looked, and sleeps again.
    const uint64_t sleeps_before = sleep_count();
    while (sleep_count() == sleeps_before) {
    }
    const auto begin = std::chrono::steady_clock::now();
    watcher.nothing_is_live();
    while (watcher.figures().evicted_bytes == evicted_before) {
    }
    times.push_back(std::chrono::steady_clock::now() - begin);
  }
  std::sort(times.begin(), times.end());
  EXPECT(times[times.size() / 2] < std::chrono::milliseconds(3));
}

TEST(watching_loses_no_write) {
  const TemporaryFile file(kSize);
  for (const os::ScanMethod method : kMethods) {
    const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
    Watcher watcher(method);
    watcher.watch({mapping.range()}, kMiB);
    constexpr uint64_t kWriters = 3;
    std::atomic<int> running = kWriters;
    std::vector<std::thread> writers;
    for (uint64_t writer = 0; writer < kWriters; ++writer) {
      writers.emplace_back([&, writer] {
        for (uint64_t at = writer * 64; at < kSize; at += kWriters * 64) {
          byte_at(mapping, at) = static_cast<char>(pattern_at(at) + 1);
        }
        --running;
      });
    }
    while (running > 0) {
      for (uint64_t at = 0; at < kSize; at += os::page_size_bytes()) {
        (void)byte_at(mapping, at).load(std::memory_order_relaxed);
      }
    }
    for (std::thread& writer : writers) {
      writer.join();
    }
    watcher.stop();
    uint64_t lost = 0;
    for (uint64_t at = 0; at < kSize; at += 64) {
      lost += mapping.bytes()[at] != static_cast<char>(pattern_at(at) + 1);
    }
    EXPECT_EQ(lost, uint64_t{0});
    EXPECT_EQ(mapping.bytes()[1], pattern_at(1));
  }
}

TEST(the_ranges_watched_are_those_given_last) {
  const TemporaryFile file(kSize);
  const TestMapping first(file.path(), kSize, MAP_PRIVATE);
  const TemporaryFile other_file(kSize);
  const TestMapping second(other_file.path(), kSize, MAP_PRIVATE);
  Watcher watcher(os::ScanMethod::kBest);
  watcher.watch({first.range()}, kLimit);
  watcher.watch({second.range()}, kLimit);
  first.touch();
  second.touch();
  EXPECT(comes_to_hold(second, kLimit));
  EXPECT_EQ(first.resident().clean_bytes, kSize);
}

TEST(a_pause_holds_it_up) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  Watcher watcher(os::ScanMethod::kBest);
  watcher.watch({mapping.range()}, kLimit);
  {
    const Watcher::Pause pause(watcher);
    mapping.touch();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(mapping.resident().clean_bytes, kSize);
  }
  EXPECT(comes_to_hold(mapping, kLimit));
}

TEST(the_thread_ends_with_stop) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  const size_t threads_before = thread_count();
  Watcher watcher(os::ScanMethod::kBest);
  watcher.stop();
  EXPECT(!watcher.is_watching());
  for (int i = 0; i < 100; ++i) {
    watcher.watch({mapping.range()}, kLimit);
    EXPECT(watcher.is_watching());
    EXPECT_EQ(thread_count(), threads_before + 1);
    watcher.stop();
    // The kernel lists a thread for a moment after it was joined.
    for (int k = 0; k < 20000 && thread_count() > threads_before; ++k) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    EXPECT_EQ(thread_count(), threads_before);
  }
  mapping.touch();
  EXPECT_EQ(mapping.resident().clean_bytes, kSize);
}

TEST(page_tables_that_cannot_be_read_are_told) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  Watcher watcher(os::ScanMethod::kNone);
  watcher.watch({mapping.range()}, kLimit);
  for (int i = 0; i < 20000 && watcher.figures().drop_error == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(watcher.figures().drop_error, EACCES);
}

// TSan does not survive that a thread of the child's has the name that one of
// the parent's had (os::leave_with_parent()).
#ifndef THREAD_SANITIZED

// As the C library gives a child the memory of its parent's threads for its
// own, one of these has the handle that the parent's thread had.
TEST(a_forked_child_leaves_its_own_threads_alone) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  Watcher watcher(os::ScanMethod::kBest);
  watcher.watch({mapping.range()}, kLimit);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    std::mutex is_under_way;
    std::vector<std::thread> threads(8);
    is_under_way.lock();
    for (std::thread& thread : threads) {
      thread = std::thread([&] { const std::lock_guard wait(is_under_way); });
    }
    watcher.stop();
    is_under_way.unlock();
    int refused = 0;
    for (std::thread& thread : threads) {
      try {
        thread.join();
      } catch (const std::system_error&) {  // somebody detached it
        ++refused;
        os::leave_with_parent(std::move(thread));
      }
    }
    ::_exit(refused);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(a_forked_child_watches_for_itself) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  Watcher watcher(os::ScanMethod::kBest);
  watcher.watch({mapping.range()}, kLimit);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    const bool was_left_behind = !watcher.is_watching();
    watcher.watch({mapping.range()}, kLimit);
    mapping.touch();
    const bool holds = comes_to_hold(mapping, kLimit);
    watcher.stop();
    ::_exit(was_left_behind && holds && thread_count() == 1 ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  mapping.touch();
  EXPECT(comes_to_hold(mapping, kLimit));
}

#endif  // THREAD_SANITIZED

}  // namespace
}  // namespace ckpt_streamer::stream
