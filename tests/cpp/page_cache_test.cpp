#include "os/page_cache.h"

#include <sched.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

using ckpt_streamer::testing::make_cold;
using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

constexpr uint64_t kSize = 16 << 20;

TEST(backing_file_is_the_mappings_own) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  const ByteRange& range = mapping.range();
  const auto file = BackingFile::behind(range.begin + 5);
  EXPECT(file != nullptr);
  EXPECT(file->addresses() == range);
  EXPECT(
      file->file_range({range.begin + 7, range.begin + 9}) ==
      (ByteRange{7, 9}));
  struct stat of_path = {};
  struct stat of_file = {};
  EXPECT_EQ(::stat(path.path().c_str(), &of_path), 0);
  EXPECT_EQ(::fstat(file->descriptor(), &of_file), 0);
  EXPECT_EQ(of_path.st_ino, of_file.st_ino);
  EXPECT(file->shows_cached_pages());
}

TEST(backing_file_is_not_another_one_of_that_name) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  struct stat before = {};
  EXPECT_EQ(::stat(path.path().c_str(), &before), 0);
  const TemporaryFile other(kSize);
  EXPECT_EQ(std::rename(other.path().c_str(), path.path().c_str()), 0);
  // Where the mapping's own link may be followed, it still leads there.
  const auto file = BackingFile::behind(mapping.range().begin);
  struct stat found = {};
  EXPECT(
      file == nullptr || (::fstat(file->descriptor(), &found) == 0 &&
                          found.st_ino == before.st_ino));
}

TEST(backing_file_of_other_memory_is_none) {
  const TestMapping mapping("", kSize, MAP_PRIVATE | MAP_ANONYMOUS);
  EXPECT(BackingFile::behind(mapping.range().begin) == nullptr);
  EXPECT(BackingFile::behind(0) == nullptr);
}

TEST(prefetch_reads_a_block_and_maps_nothing) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  make_cold(path.path());
  const auto file = BackingFile::behind(mapping.range().begin);
  EXPECT_EQ(mapping.cached_bytes(), uint64_t{0});
  EXPECT(prefetch(*file, 0));
  EXPECT(is_cached(mapping.range().begin));
  EXPECT(mapping.cached_bytes() >= prefetch_block_bytes());
  EXPECT(!prefetch(*file, 0));
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
}

TEST(prefetch_past_the_end_of_a_truncated_file_does_nothing) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  const auto file = BackingFile::behind(mapping.range().begin);
  EXPECT_EQ(::truncate(path.path().c_str(), 0), 0);
  prefetch(*file, 4 * prefetch_block_bytes());
}

TEST(drop_cached_gives_back_the_kernels_copy) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  make_cold(path.path());
  mapping.touch();
  const auto file = BackingFile::behind(mapping.range().begin);
  EXPECT_EQ(mapping.cached_bytes(), kSize);
  // Mapped pages stay.
  EXPECT_EQ(drop_cached(*file, {0, kSize}), 0);
  EXPECT_EQ(mapping.cached_bytes(), kSize);
  const ByteRange range = mapping.range();
  Residency().drop_resident({&range, 1});
  EXPECT_EQ(drop_cached(*file, {0, kSize}), 0);
  EXPECT_EQ(mapping.cached_bytes(), uint64_t{0});
}

TEST(cached_bytes_are_counted_exactly) {
  const TemporaryFile path(kSize);
  const TestMapping mapping(path.path(), kSize, MAP_PRIVATE);
  const auto file = BackingFile::behind(mapping.range().begin);
  make_cold(path.path());
  EXPECT_EQ(cached_bytes(*file, {0, kSize}), uint64_t{0});
  prefetch(*file, 0);
  const uint64_t block = prefetch_block_bytes();
  EXPECT_EQ(cached_bytes(*file, {0, block}), block);
  EXPECT_EQ(cached_bytes(*file, {5, 6}), page_size_bytes());
  EXPECT_EQ(cached_bytes(*file, {5, 5}), uint64_t{0});
  EXPECT_EQ(cached_bytes(*file, {0, kSize}), mapping.cached_bytes());
}

// As in a container of a user's own: being root there says nothing of a file
// whose owner is not known there. Where it may not be had, the same is not
// said.
TEST(root_of_a_namespace_sees_no_pages_of_users_outside) {
  const TemporaryFile file(page_size_bytes());
  if (::geteuid() != 0 || ::chown(file.path().c_str(), 12345, 12345) != 0) {
    return;
  }
  EXPECT_EQ(::chmod(file.path().c_str(), 0644), 0);
  const TestMapping mapping(file.path(), page_size_bytes(), MAP_PRIVATE);
  const auto backing = BackingFile::behind(mapping.range().begin);
  EXPECT(backing != nullptr);
  EXPECT(backing->shows_cached_pages());
  const pid_t child = ::fork();
  if (child == 0) {
    if (::unshare(CLONE_NEWUSER) != 0) {
      ::_exit(0);
    }
    std::ofstream("/proc/self/uid_map") << "0 0 1";
    ::_exit(::geteuid() == 0 && !backing->shows_cached_pages() ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace ckpt_streamer::os
