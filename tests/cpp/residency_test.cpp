// Every test that drops or counts runs with both ways of reading page tables.
#include "os/residency.h"

#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "os/single_faults.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

using ckpt_streamer::testing::pattern_at;
using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

constexpr uint64_t kSize = 8 << 20;
uint64_t cached_bytes(const TestMapping& mapping) {
  std::vector<unsigned char> in_core(
      mapping.range().size_bytes() / page_size_bytes());
  EXPECT_EQ(
      ::mincore(
          const_cast<char*>(mapping.bytes()),
          mapping.range().size_bytes(),
          in_core.data()),
      0);
  return page_size_bytes() *
         static_cast<uint64_t>(std::count_if(
             in_core.begin(),
             in_core.end(),
             [](unsigned char state) { return (state & 1) != 0; }));
}

void write_to_disk(const TemporaryFile& file) {
  const int descriptor = ::open(file.path().c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(::fsync(descriptor), 0);
  ::close(descriptor);
}

constexpr ScanMethod kMethods[] = {ScanMethod::kBest, ScanMethod::kPagemap};

TEST(private_file_mappings_lists_private_file_mappings_only) {
  const TemporaryFile file(kSize);
  const TestMapping is_private(file.path(), kSize, MAP_PRIVATE);
  const TestMapping is_shared(file.path(), kSize, MAP_SHARED);
  const TestMapping is_anonymous("", kSize, MAP_PRIVATE | MAP_ANONYMOUS);
  const ByteRange range = is_private.range();
  for (const ScanMethod method : kMethods) {
    const auto listed = private_file_mappings(range, method);
    EXPECT_EQ(listed.size(), size_t{1});
    EXPECT(listed[0].contains(range));
    // Whole, also when only a part is asked for.
    const ByteRange page = {range.begin + 4096, range.begin + 8192};
    EXPECT(private_file_mappings(page, method)[0].contains(range));
    EXPECT(private_file_mappings(is_shared.range(), method).empty());
    EXPECT(private_file_mappings(is_anonymous.range(), method).empty());
    EXPECT(private_file_mappings({}, method).empty());
    const auto all = private_file_mappings(
        {0, std::numeric_limits<uint64_t>::max()},
        method);
    EXPECT(all.size() > 1);
    EXPECT(
        std::is_sorted(
            all.begin(),
            all.end(),
            [](const ByteRange& left, const ByteRange& right) {
              return left.end <= right.begin;
            }));
    EXPECT(std::find(all.begin(), all.end(), listed[0]) != all.end());
  }
}

TEST(drop_resident_drops_every_clean_page) {
  const TemporaryFile file(kSize);
  for (const ScanMethod method : kMethods) {
    const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
    mapping.touch();
    EXPECT_EQ(mapping.resident().clean_bytes, kSize);
    Residency residency(method);
    const ByteRange range = mapping.range();
    EXPECT_EQ(residency.count_resident({&range, 1}), kSize);
    const DropResult result = residency.drop_resident({&range, 1});
    EXPECT_EQ(result.found_bytes, kSize);
    EXPECT_EQ(result.remaining_bytes, uint64_t{0});
    EXPECT_EQ(result.error_number, 0);
    EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
    EXPECT_EQ(mapping.bytes()[4097], pattern_at(4097));
  }
}

TEST(drop_resident_keeps_written_pages) {
  const TemporaryFile file(kSize);
  for (const ScanMethod method : kMethods) {
    const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
    mapping.touch();
    const uint64_t page_size = page_size_bytes();
    uint64_t written_pages = 0;
    for (uint64_t i = 0; i < kSize; i += 3 * page_size) {
      mapping.bytes()[i + 1] = 'w';
      ++written_pages;
    }
    mapping.touch();  // a write unmaps the rest of a huge page
    Residency residency(method);
    const ByteRange range = mapping.range();
    EXPECT_EQ(residency.count_written({&range, 1}), written_pages * page_size);
    const DropResult result = residency.drop_resident({&range, 1});
    EXPECT_EQ(result.found_bytes, kSize - written_pages * page_size);
    EXPECT_EQ(result.remaining_bytes, uint64_t{0});
    EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
    EXPECT_EQ(mapping.resident().written_bytes, written_pages * page_size);
    for (uint64_t i = 0; i < kSize; i += page_size) {
      const bool written = i % (3 * page_size) == 0;
      EXPECT_EQ(mapping.bytes()[i + 1], written ? 'w' : pattern_at(i + 1));
    }
  }
}

// Writes to each page once, from another thread, while the pages are dropped
// over and over; then every write must be there. With OtherWriters::kNone, the
// same loop loses some.
uint64_t lost_writes(const TestMapping& mapping, OtherWriters other_writers) {
  const ByteRange range = mapping.range();
  std::atomic<bool> is_done = false;
  std::thread writer([&] {
    for (uint64_t at = 7; at < kSize; at += 64) {
      mapping.bytes()[at] = static_cast<char>(pattern_at(at) + 1);
    }
    is_done = true;
  });
  Residency residency;
  while (!is_done) {
    mapping.touch();
    residency.drop_resident({&range, 1}, other_writers);
  }
  writer.join();
  uint64_t lost = 0;
  for (uint64_t at = 0; at < kSize; ++at) {
    const char expected =
        static_cast<char>(pattern_at(at) + (at % 64 == 7 ? 1 : 0));
    lost += mapping.bytes()[at] != expected ? 1 : 0;
  }
  return lost;
}

TEST(drop_resident_loses_no_write_of_another_thread) {
  const TemporaryFile file(kSize);
  for (int round = 0; round < 50; ++round) {
    const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
    EXPECT_EQ(lost_writes(mapping, OtherWriters::kPossible), uint64_t{0});
  }
}

// As many threads as given write to one page after the other, once each, while
// they are paged out over and over; returns how many of the writes could not be
// read back a little later.
uint64_t writes_not_read_back(const TestMapping& mapping, int thread_count) {
  const ByteRange range = mapping.range();
  std::atomic<int> running = thread_count;
  std::atomic<uint64_t> missed = 0;
  std::vector<std::thread> writers;
  for (int thread = 0; thread < thread_count; ++thread) {
    writers.emplace_back([&, thread] {
      for (uint64_t page = 0; page < kSize; page += page_size_bytes()) {
        // Beside the bytes that touch() reads.
        const uint64_t at = page + 64 * (static_cast<uint64_t>(thread) + 1);
        volatile char& byte = mapping.bytes()[at];
        const char written = static_cast<char>(pattern_at(at) + 1);
        byte = written;
        // A processor may know the file's page for a moment yet.
        int tries = 0;
        while (byte != written && tries < 1000) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          ++tries;
        }
        missed += byte == written ? 0 : 1;
      }
      --running;
    });
  }
  Residency residency;
  while (running > 0) {
    mapping.touch();
    residency.page_out({&range, 1});
  }
  for (std::thread& writer : writers) {
    writer.join();
  }
  return missed;
}

TEST(page_out_loses_no_write) {
  const TemporaryFile file(kSize);
  for (int round = 0; round < 10; ++round) {
    const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
    EXPECT_EQ(writes_not_read_back(mapping, 1 + round % 3), uint64_t{0});
    const ByteRange range = mapping.range();
    Residency residency;
    residency.page_out({&range, 1});
    for (uint64_t at = 64; at < kSize; at += page_size_bytes()) {
      EXPECT_EQ(mapping.bytes()[at], static_cast<char>(pattern_at(at) + 1));
    }
  }
}

// Reclaim passes over pages that another processor is still adding to its list.
// Returns what was found at first.
uint64_t page_out_all(Residency& residency, const ByteRange& range) {
  const DropResult first = residency.page_out({&range, 1});
  uint64_t remaining_bytes = first.remaining_bytes;
  for (int i = 0; i < 1000 && remaining_bytes > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    remaining_bytes = residency.page_out({&range, 1}).remaining_bytes;
  }
  EXPECT_EQ(remaining_bytes, uint64_t{0});
  return first.found_bytes;
}

TEST(page_out_keeps_the_page_cache) {
  const TemporaryFile file(kSize);
  write_to_disk(file);
  for (const auto huge_pages : {HugePages::kAvoid, HugePages::kPrefer}) {
    for (const bool is_written : {false, true}) {
      const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
      const ByteRange range = mapping.range();
      advise_huge_pages({&range, 1}, huge_pages);
      mapping.touch();
      if (is_written) {
        mapping.bytes()[kSize / 2] = 'w';
        mapping.touch();
      }
      Residency residency;
      EXPECT_EQ(
          page_out_all(residency, range),
          kSize - (is_written ? page_size_bytes() : 0));
      EXPECT_EQ(cached_bytes(mapping), kSize);
      EXPECT_EQ(
          mapping.bytes()[kSize / 2],
          is_written ? 'w' : pattern_at(kSize / 2));
    }
  }
}

TEST(drop_resident_drops_across_parts_with_other_flags) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  char* const bytes = const_cast<char*>(mapping.bytes());
  for (uint64_t at = 3 * page_size_bytes(); at < kSize; at += kSize / 5) {
    EXPECT_EQ(
        ::mprotect(
            bytes + at / page_size_bytes() * page_size_bytes(),
            page_size_bytes(),
            PROT_READ),
        0);
  }
  mapping.touch();
  const ByteRange range = mapping.range();
  Residency residency;
  const DropResult result =
      residency.drop_resident({&range, 1}, OtherWriters::kPossible);
  EXPECT_EQ(result.found_bytes, kSize);
  EXPECT_EQ(result.remaining_bytes, uint64_t{0});
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
}

TEST(drop_resident_drops_what_is_in_its_ranges) {
  const TemporaryFile file(kSize);
  for (const ScanMethod method : kMethods) {
    for (const auto writers : {OtherWriters::kNone, OtherWriters::kPossible}) {
      const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
      const ByteRange whole = mapping.range();
      advise_huge_pages({&whole, 1}, HugePages::kAvoid);
      mapping.touch();
      const uint64_t page_size = page_size_bytes();
      mapping.bytes()[5 * page_size] = 'w';  // outside
      mapping.touch();
      Residency residency(method);
      const ByteRange ranges[] = {
          {whole.begin + (1 << 20), whole.begin + (2 << 20)},
          {whole.begin + (4 << 20), whole.begin + (5 << 20)}};
      const DropResult result = residency.drop_resident(ranges, writers);
      EXPECT_EQ(result.found_bytes, uint64_t{2 << 20});
      EXPECT_EQ(result.remaining_bytes, uint64_t{0});
      EXPECT_EQ(residency.count_resident(ranges), uint64_t{0});
      EXPECT(!result.has_split || writers == OtherWriters::kPossible);
      const uint64_t outside_bytes = mapping.resident().clean_bytes;
      EXPECT(outside_bytes <= kSize - (2 << 20) - page_size);
      EXPECT(
          result.has_split || outside_bytes == kSize - (2 << 20) - page_size);
      EXPECT_EQ(mapping.resident().written_bytes, page_size);
      EXPECT_EQ(mapping.bytes()[5 * page_size], 'w');
      EXPECT_EQ(mapping.bytes()[kSize - 1], pattern_at(kSize - 1));
    }
  }
}

TEST(move_out_takes_all_but_written_pages_across_holes) {
  const TemporaryFile file(kSize);
  for (const ScanMethod method : kMethods) {
    const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
    const ByteRange range = mapping.range();
    mapping.touch();
    mapping.bytes()[kSize / 4] = 'w';
    mapping.touch();
    Residency residency(method);
    const ByteRange hole = {range.begin + kSize / 2, range.end - kSize / 8};
    residency.drop_resident({&hole, 1});
    EXPECT(residency.count_resident({&range, 1}) > 0);
    EXPECT_EQ(residency.move_out(range), 0);
    EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
    EXPECT_EQ(mapping.resident().written_bytes, page_size_bytes());
    EXPECT_EQ(mapping.bytes()[kSize / 4], 'w');
    EXPECT_EQ(mapping.bytes()[4097], pattern_at(4097));
    EXPECT_EQ(mapping.bytes()[kSize - 1], pattern_at(kSize - 1));
  }
}

TEST(move_out_loses_no_write_of_another_thread) {
  const TemporaryFile file(kSize);
  for (const ScanMethod method : kMethods) {
    for (const bool has_single_faults : {false, true}) {
      const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
      const ByteRange range = mapping.range();
      SingleFaults faults;
      const bool is_begun = has_single_faults && faults.begin(range) == 0;
      std::atomic<bool> is_done = false;
      std::thread writer([&] {
        for (uint64_t at = 7; at < kSize; at += 64) {
          mapping.bytes()[at] = static_cast<char>(pattern_at(at) + 1);
        }
        is_done = true;
      });
      Residency residency(method);
      while (!is_done) {
        mapping.touch();
        EXPECT_EQ(residency.move_out(range), 0);
      }
      writer.join();
      for (uint64_t at = 0; at < kSize; ++at) {
        EXPECT_EQ(
            mapping.bytes()[at],
            static_cast<char>(pattern_at(at) + (at % 64 == 7 ? 1 : 0)));
      }
      if (is_begun) {  // and stays so where pages were moved
        const TestMapping clean(file.path(), kSize, MAP_PRIVATE);
        const ByteRange clean_range = clean.range();
        EXPECT_EQ(faults.begin(clean_range), 0);
        advise_huge_pages({&clean_range, 1}, HugePages::kAvoid);
        clean.touch();
        EXPECT_EQ(residency.move_out(clean_range), 0);
        (void)clean.bytes()[kSize / 2];
        EXPECT_EQ(
            residency.count_resident({&clean_range, 1}),
            page_size_bytes());
      }
    }
  }
}

TEST(drop_resident_leaves_anonymous_memory_alone) {
  for (const ScanMethod method : kMethods) {
    const TestMapping mapping("", kSize, MAP_PRIVATE | MAP_ANONYMOUS);
    for (uint64_t i = 0; i < kSize; ++i) {
      mapping.bytes()[i] = pattern_at(i);
    }
    Residency residency(method);
    const ByteRange range = mapping.range();
    EXPECT_EQ(residency.drop_resident({&range, 1}).found_bytes, uint64_t{0});
    for (uint64_t i = 0; i < kSize; i += 997) {
      EXPECT_EQ(mapping.bytes()[i], pattern_at(i));
    }
  }
}

TEST(drop_resident_says_what_it_could_not_drop) {
  const TemporaryFile file(kSize);
  std::atomic<bool> is_done = false;
  std::thread second([&] { is_done.wait(false); });
  for (const auto writers : {OtherWriters::kNone, OtherWriters::kPossible}) {
    const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
    mapping.touch();
    const ByteRange range = mapping.range();
    // Read-only first: locking writable private memory copies it.
    char* const bytes = const_cast<char*>(mapping.bytes());
    constexpr uint64_t kLocked = 1 << 20;
    EXPECT_EQ(::mprotect(bytes, kSize, PROT_READ), 0);
    EXPECT_EQ(::syscall(SYS_mlock, bytes, kLocked), 0L);  // ASan stubs mlock()
    Residency residency;
    for (int round = 0; round < 2; ++round) {  // it stays locked
      const DropResult result = residency.drop_resident({&range, 1}, writers);
      EXPECT(result.remaining_bytes >= kLocked);
      EXPECT_EQ(result.error_number, EINVAL);
    }
  }
  is_done = true;
  is_done.notify_all();
  second.join();
}

TEST(without_page_tables_nothing_is_dropped_and_all_counts_as_resident) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  mapping.touch();
  Residency residency(ScanMethod::kNone);
  const ByteRange range = mapping.range();
  const DropResult result = residency.drop_resident({&range, 1});
  EXPECT_EQ(result.found_bytes, kSize);
  EXPECT_EQ(result.remaining_bytes, kSize);
  EXPECT_EQ(result.error_number, EACCES);
  EXPECT_EQ(residency.scan_error(), EACCES);
  EXPECT_EQ(residency.count_resident({&range, 1}), kSize);
  EXPECT_EQ(mapping.resident().clean_bytes, kSize);
}

// The descriptor opened before the fork shows the parent's page tables: there,
// the page is clean; in the child it is written.
TEST(a_forked_child_looks_at_its_own_pages) {
  const TemporaryFile file(kSize);
  for (const ScanMethod method : kMethods) {
    const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
    mapping.touch();
    Residency residency(method);
    const ByteRange range = mapping.range();
    EXPECT_EQ(residency.count_resident({&range, 1}), kSize);
    const pid_t child = ::fork();
    if (child == 0) {
      mapping.bytes()[5] = 'c';
      residency.drop_resident({&range, 1});
      ::_exit(mapping.bytes()[5] == 'c' ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
}

TEST(populate_makes_a_range_resident_without_writing) {
  const TemporaryFile file(kSize);
  const TestMapping mapping(file.path(), kSize, MAP_PRIVATE);
  Residency residency;
  const uint64_t begin = mapping.range().begin + (1 << 20);
  const ByteRange range = {begin + 5, begin + 100000};
  EXPECT_EQ(residency.populate(range), 0);
  const ByteRange pages = round_outward(range, page_size_bytes());
  EXPECT_EQ(residency.count_resident({&pages, 1}), pages.size_bytes());
  EXPECT_EQ(mapping.resident().written_bytes, uint64_t{0});
}

}  // namespace
}  // namespace ckpt_streamer::os
