#include "stream/read_ahead.h"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "os/page_cache.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::stream {
namespace {

using ckpt_streamer::testing::make_cold;
using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

constexpr uint64_t kSize = 64 << 20;

size_t thread_count() {
  namespace fs = std::filesystem;
  return static_cast<size_t>(std::distance(
      fs::directory_iterator("/proc/self/task"),
      fs::directory_iterator()));
}

// False if it is not so within some seconds. (What is cached by then may be
// more: the system reads ahead as well.)
bool comes_to_read(const ReadAhead& read_ahead, uint64_t byte_count) {
  for (int i = 0; i < 20000 && read_ahead.prefetched_bytes() < byte_count;
       ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return read_ahead.prefetched_bytes() >= byte_count;
}

TEST(a_cold_file_is_read_ahead_and_nothing_of_it_mapped) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  make_cold(path.path());
  const ByteRange range = mapping.range();
  const size_t threads_before = thread_count();
  ReadAhead read_ahead;
  read_ahead.request({&range, 1});
  EXPECT_EQ(thread_count(), threads_before + 1);
  EXPECT(comes_to_read(read_ahead, kSize));
  read_ahead.stop();
  EXPECT_EQ(mapping.cached_bytes(), kSize);
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
  EXPECT_EQ(thread_count(), threads_before);
}

TEST(a_cached_file_costs_no_thread) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  mapping.touch();
  const ByteRange range = mapping.range();
  const size_t threads_before = thread_count();
  ReadAhead read_ahead;
  read_ahead.request({&range, 1});
  EXPECT_EQ(thread_count(), threads_before);
  EXPECT_EQ(read_ahead.prefetched_bytes(), uint64_t{0});
}

TEST(only_what_is_asked_for_is_read_ahead) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  make_cold(path.path());
  const uint64_t begin = mapping.range().begin;
  const ByteRange parts[] = {
      {begin + 100, begin + 200},
      {begin + 300, begin + 400},  // of the same block
      {begin + kSize / 2 + 5, begin + kSize / 2 + 6},
  };
  ReadAhead read_ahead;
  read_ahead.request(parts);
  EXPECT(comes_to_read(read_ahead, 2 * os::prefetch_block_bytes()));
  read_ahead.stop();
  EXPECT_EQ(read_ahead.prefetched_bytes(), 2 * os::prefetch_block_bytes());
  EXPECT(!os::is_cached(begin + kSize - 1));
}

TEST(a_request_after_a_stop_begins_again) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  make_cold(path.path());
  const ByteRange range = mapping.range();
  ReadAhead read_ahead;
  read_ahead.stop();
  for (int i = 0; i < 100; ++i) {
    read_ahead.request({&range, 1});
    read_ahead.stop();
  }
  make_cold(path.path());
  const uint64_t read_before = read_ahead.prefetched_bytes();
  read_ahead.request({&range, 1});
  EXPECT(comes_to_read(read_ahead, read_before + 1));
}

// TSan does not survive that a thread of the child's has the name that one of
// the parent's had (os::leave_with_parent()).
#ifndef THREAD_SANITIZED

TEST(a_forked_child_reads_ahead_for_itself) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  make_cold(path.path());
  const ByteRange range = mapping.range();
  ReadAhead read_ahead;
  read_ahead.request({&range, 1});
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    make_cold(path.path());
    const uint64_t read_before = read_ahead.prefetched_bytes();
    read_ahead.request({&range, 1});
    const bool is_read = comes_to_read(read_ahead, read_before + 1);
    read_ahead.stop();
    ::_exit(is_read && thread_count() == 1 ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

#endif  // THREAD_SANITIZED

TEST(memory_without_a_file_is_left_alone) {
  const TestMapping mapping("", kSize, MAP_PRIVATE | MAP_ANONYMOUS);
  const ByteRange range = mapping.range();
  ReadAhead read_ahead;
  read_ahead.request({&range, 1});
  read_ahead.stop();
  EXPECT_EQ(read_ahead.prefetched_bytes(), uint64_t{0});
}

}  // namespace
}  // namespace ckpt_streamer::stream
