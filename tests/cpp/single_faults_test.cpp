#include "os/single_faults.h"

#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "refused_calls.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

using ckpt_streamer::testing::pattern_at;
using ckpt_streamer::testing::RefusedCall;
using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

constexpr uint64_t kSize = uint64_t{8} << 20;

// What one touched byte maps.
uint64_t mapped_by_touch(const TestMapping& mapping, uint64_t offset) {
  const ByteRange range = mapping.range();
  Residency residency;
  const uint64_t before = residency.count_resident({&range, 1});
  (void)mapping.bytes()[offset];
  return residency.count_resident({&range, 1}) - before;
}

// Cached in folios as large as files have them, and none of it mapped.
struct Cached {
  Cached() {
    ckpt_streamer::testing::make_cold(file.path());
    const ByteRange range = mapping.range();
    advise_huge_pages({&range, 1}, HugePages::kPrefer);
    mapping.touch();
    Residency().drop_resident({&range, 1}, OtherWriters::kNone);
    advise_huge_pages({&range, 1}, HugePages::kAvoid);
  }
  ByteRange first_half() const {
    return {mapping.range().begin, mapping.range().begin + kSize / 2};
  }

  TemporaryFile file{kSize};
  TestMapping mapping{file.path(), kSize, MAP_PRIVATE};
};

TEST(single_faults_map_one_page_each) {
  const Cached cached;
  const TestMapping& mapping = cached.mapping;
  const uint64_t page_size = page_size_bytes();
  SingleFaults faults;
  const int error_number = faults.begin(cached.first_half());
  EXPECT_EQ(error_number == 0, SingleFaults::are_possible());
  if (error_number == 0) {
    EXPECT_EQ(mapped_by_touch(mapping, 12345), page_size);
    EXPECT_EQ(mapped_by_touch(mapping, kSize / 2 - 1), page_size);
  }
  EXPECT(mapped_by_touch(mapping, kSize - 1) > page_size);  // not of the range
  faults.end(cached.first_half());
  EXPECT(mapped_by_touch(mapping, kSize / 4) > page_size);
  EXPECT_EQ(mapping.bytes()[12345], pattern_at(12345));
}

TEST(single_faults_end_with_their_owner) {
  const Cached cached;
  {
    EXPECT_EQ(
        SingleFaults().begin(cached.first_half()) == 0,
        SingleFaults::are_possible());
  }
  EXPECT(mapped_by_touch(cached.mapping, 12345) > page_size_bytes());
}

TEST(writes_where_faults_are_single_are_writes) {
  const Cached cached;
  const TestMapping& mapping = cached.mapping;
  SingleFaults faults;
  faults.begin(cached.first_half());
  (void)mapping.bytes()[4096];
  mapping.bytes()[4096] = 'w';
  mapping.bytes()[65536] = 'w';
  const ByteRange range = mapping.range();
  Residency residency;
  EXPECT_EQ(residency.count_written({&range, 1}), 2 * page_size_bytes());
  residency.drop_resident({&range, 1});
  faults.end(cached.first_half());
  EXPECT_EQ(mapping.bytes()[4096], 'w');
  EXPECT_EQ(mapping.bytes()[65536], 'w');
  EXPECT_EQ(mapping.bytes()[4097], pattern_at(4097));
}

TEST(a_forked_child_has_single_faults_of_its_own) {
  const Cached cached;
  SingleFaults faults;
  faults.begin(cached.first_half());
  const pid_t child = ::fork();
  if (child == 0) {
    // Of the parent's ranges it has none, nor can it end them.
    bool is_right = mapped_by_touch(cached.mapping, 12345) > page_size_bytes();
    faults.end(cached.first_half());
    const bool is_begun = faults.begin(cached.first_half()) == 0;
    is_right = is_right && is_begun == SingleFaults::are_possible();
    ::_exit(is_right ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  if (SingleFaults::are_possible()) {
    EXPECT_EQ(mapped_by_touch(cached.mapping, 12345), page_size_bytes());
  }
}

TEST(single_faults_that_a_policy_refuses_leave_the_range_as_it_was) {
  const Cached cached;
  const pid_t child = ::fork();
  if (child == 0) {
    if (!ckpt_streamer::testing::refuse({RefusedCall{SYS_userfaultfd}})) {
      ::_exit(2);
    }
    SingleFaults faults;
    const bool is_refused = faults.begin(cached.first_half()) == EPERM;
    faults.end(cached.first_half());
    const bool is_as_before =
        mapped_by_touch(cached.mapping, 12345) > page_size_bytes();
    ::_exit(is_refused && is_as_before ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace ckpt_streamer::os
