#include "os/file.h"

#include <sys/stat.h>

#include <array>
#include <fstream>
#include <limits>
#include <memory>
#include <string>

#include "base/error.h"
#include "os/mapped_file.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

using ckpt_streamer::testing::pattern_at;
using ckpt_streamer::testing::TemporaryFile;

TEST(a_file_reads_any_range) {
  const TemporaryFile path(10000);
  const File file(path.path());
  EXPECT_EQ(file.size_bytes(), uint64_t{10000});
  std::array<std::byte, 100> bytes{};
  file.read(9900, bytes);
  EXPECT_EQ(static_cast<char>(bytes[99]), pattern_at(9999));
}

TEST(a_read_past_the_end_is_an_error) {
  const TemporaryFile path(10);
  const File file(path.path());
  std::array<std::byte, 4> bytes{};
  EXPECT_THROWS(
      CheckpointError,
      path.path() + ": found 10 bytes, expected 4 more [byte 8]",
      file.read(8, bytes));
  EXPECT_THROWS(
      CheckpointError,
      path.path() +
          ": found 10 bytes, expected 4 more [byte 18446744073709551615]",
      file.read(std::numeric_limits<uint64_t>::max(), bytes));
}

TEST(a_file_that_shrinks_is_an_error) {
  const TemporaryFile path(10000);
  const File file(path.path());
  EXPECT_EQ(::truncate(path.path().c_str(), 100), 0);
  EXPECT_THROWS(
      CheckpointError,
      path.path() +
          ": the file has shrunk to 100 bytes since it was opened, expected "
          "10000",
      file.check_unchanged());
  std::array<std::byte, 4> bytes{};
  EXPECT_THROWS(
      CheckpointError,
      path.path() +
          ": the file has shrunk from 10000 bytes while it was read, expected "
          "4 more [byte 5000]",
      file.read(5000, bytes));
}

TEST(a_view_shows_any_range_and_goes) {
  const TemporaryFile path(20000);
  const File file(path.path());
  const auto mapping_count = [&] {
    std::ifstream maps("/proc/self/maps");
    size_t count = 0;
    for (std::string line; std::getline(maps, line);) {
      count += line.ends_with(path.path()) ? 1 : 0;
    }
    return count;
  };
  for (const ByteRange range :
       {ByteRange{0, 1},
        ByteRange{0, 4096},
        ByteRange{4095, 4097},
        ByteRange{5000, 20000},
        ByteRange{19999, 20000}}) {
    ByteView view = file.view(range);
    EXPECT_EQ(view.bytes.size(), range.size_bytes());
    for (uint64_t i = 0; i < view.bytes.size(); ++i) {
      EXPECT_EQ(static_cast<char>(view.bytes[i]), pattern_at(range.begin + i));
    }
    EXPECT_EQ(mapping_count(), 1U);
    const ByteView copy = view;
    view = {};
    EXPECT_EQ(static_cast<char>(copy.bytes[0]), pattern_at(range.begin));
  }
  EXPECT_EQ(mapping_count(), 0U);
  EXPECT_EQ(file.view({20000, 20000}).bytes.size(), 0U);
  EXPECT_THROWS(
      CheckpointError,
      path.path() + ": found 20000 bytes, expected 2 more [byte 19999]",
      (void)file.view({19999, 20001}));
}

TEST(a_view_of_a_file_that_shrank_is_an_error) {
  const TemporaryFile path(20000);
  const File file(path.path());
  const ByteView early = file.view({0, 4096});
  EXPECT_EQ(::truncate(path.path().c_str(), 5000), 0);
  EXPECT_EQ(file.view({0, 5000}).bytes.size(), 5000U);
  EXPECT_THROWS(
      CheckpointError,
      path.path() +
          ": the file has shrunk from 20000 bytes while it was read, expected "
          "1000 more [byte 5000]",
      (void)file.view({0, 6000}));
  EXPECT_THROWS(
      CheckpointError,
      path.path() +
          ": the file has shrunk from 20000 bytes while it was read, expected "
          "10 more [byte 8000]",
      (void)file.view({8000, 8010}));
  EXPECT_EQ(static_cast<char>(early.bytes[4095]), pattern_at(4095));
}

TEST(what_is_no_regular_file_is_refused_by_name) {
  EXPECT_THROWS(
      CheckpointError,
      "/nonexistent/x.pt: cannot open: No such file or directory",
      File("/nonexistent/x.pt"));
  EXPECT_THROWS(
      CheckpointError,
      "/tmp: is a directory, expected a checkpoint file",
      File("/tmp"));
  const TemporaryFile path(1);
  const std::string fifo = path.path() + ".fifo";
  EXPECT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THROWS(
      CheckpointError,
      fifo + ": is not a regular file, expected a checkpoint file",
      File(std::string(fifo)));
  ::unlink(fifo.c_str());
}

TEST(a_path_is_looked_at_without_opening_it) {
  const TemporaryFile file(1);
  const std::string link = file.path() + ".link";
  EXPECT_EQ(::symlink("/", link.c_str()), 0);
  EXPECT(os::path_kind(file.path()) == PathKind::kOther);
  EXPECT(os::path_kind("/dev/zero") == PathKind::kOther);
  EXPECT(os::path_kind("/") == PathKind::kDirectory);
  EXPECT(os::path_kind(link) == PathKind::kDirectory);
  ::unlink(link.c_str());
  EXPECT(os::path_kind(link) == PathKind::kMissing);
  EXPECT(os::path_kind("") == PathKind::kMissing);
  EXPECT(os::path_kind(std::string("/\0", 2)) == PathKind::kMissing);
}

TEST(a_mapping_is_private_and_outlives_its_file_object) {
  const TemporaryFile path(5000);
  auto file = std::make_unique<File>(path.path());
  const MappedFile mapping(*file);
  file.reset();
  auto* const bytes = static_cast<char*>(mapping.at(0));
  EXPECT_EQ(bytes[4999], pattern_at(4999));
  bytes[0] = 'x';
  EXPECT_EQ(bytes[0], 'x');
  std::array<std::byte, 1> on_disk{};
  File(path.path()).read(0, on_disk);
  EXPECT_EQ(static_cast<char>(on_disk[0]), pattern_at(0));
}

TEST(an_empty_file_cannot_be_mapped) {
  const TemporaryFile path(0);
  const File file(path.path());
  EXPECT_THROWS(
      CheckpointError,
      path.path() + ": is empty, expected a checkpoint",
      MappedFile(file));
}

}  // namespace
}  // namespace ckpt_streamer::os
