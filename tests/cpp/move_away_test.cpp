#include "os/move_away.h"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "refused_calls.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

using ckpt_streamer::testing::pattern_at;
using ckpt_streamer::testing::refuse;
using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

const uint64_t kPage = page_size_bytes();

// As Residency scans.
bool scan_written(
    const ByteRange& range,
    const std::function<void(ByteRange)>& visit) {
  Residency residency;
  std::vector<PageRun> runs;
  residency.list_runs(range, 16, runs);
  for (const PageRun& run : runs) {
    if (run.is_written) {
      visit(run.range);
    }
  }
  return true;
}

TEST(what_was_written_on_its_way_is_merged_back) {
  const TemporaryFile file(2 * kPage);
  const TestMapping mapping(file.path(), 2 * kPage, MAP_PRIVATE);
  mapping.touch();
  mapping.bytes()[5] = 'w';
  EXPECT_EQ(move_away(mapping.range(), false, scan_written), 0);
  EXPECT_EQ(mapping.bytes()[5], 'w');
  EXPECT_EQ(mapping.bytes()[6], pattern_at(6));
  EXPECT_EQ(mapping.bytes()[kPage + 5], pattern_at(kPage + 5));
}

// DONTNEED by a policy, and moving a page where there are too many mappings.
TEST(a_write_is_brought_back_where_the_file_cannot_be_uncovered) {
  const TemporaryFile file(2 * kPage);
  const TestMapping mapping(file.path(), 2 * kPage, MAP_PRIVATE);
  mapping.touch();
  mapping.bytes()[5] = 'w';
  const pid_t child = ::fork();
  if (child == 0) {
    const bool is_refused =
        refuse({{SYS_madvise}, {SYS_mremap, 1, static_cast<uint32_t>(kPage)}});
    const int error_number = move_away(mapping.range(), false, scan_written);
    const bool is_whole = mapping.bytes()[5] == 'w' &&
                          mapping.bytes()[6] == pattern_at(6) &&
                          mapping.bytes()[kPage] == pattern_at(kPage);
    ::_exit(!is_refused ? 2 : error_number != 0 ? 3 : is_whole ? 0 : 4);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(a_child_forked_meanwhile_has_what_was_written) {
  const TemporaryFile file(2 * kPage);
  const TestMapping mapping(file.path(), 2 * kPage, MAP_PRIVATE);
  mapping.touch();
  mapping.bytes()[5] = 'w';
  std::atomic<bool> is_forked = false;
  int status = -1;
  std::thread forking;
  const int error_number = move_away(
      mapping.range(),
      false,
      [&](const ByteRange& range, const auto& visit) {
        if (!forking.joinable()) {
          forking = std::thread([&] {
            const pid_t child = ::fork();
            if (child == 0) {
              ::_exit(mapping.bytes()[5] == 'w' ? 0 : 1);
            }
            is_forked = true;
            ::waitpid(child, &status, 0);
          });
          for (int i = 0; i < 200 && !is_forked; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          }
        }
        return scan_written(range, visit);
      });
  forking.join();
  EXPECT_EQ(error_number, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(mapping.bytes()[5], 'w');
}

}  // namespace
}  // namespace ckpt_streamer::os
