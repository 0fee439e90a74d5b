#include "stream/window_streamer.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "os/page_cache.h"
#include "os/single_faults.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::stream {
namespace {

using ckpt_streamer::testing::make_cold;
using ckpt_streamer::testing::pattern_at;
using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kFileSize = 64 * kMiB;

// Cuts [range.begin + first_offset, range.end) into spans; the last may be
// short.
std::vector<ByteRange> cut(
    const ByteRange& range,
    uint64_t first_offset,
    uint64_t size_bytes) {
  std::vector<ByteRange> spans;
  for (uint64_t begin = range.begin + first_offset; begin < range.end;
       begin += size_bytes) {
    spans.push_back({begin, std::min(begin + size_bytes, range.end)});
  }
  return spans;
}

void touch(const ByteRange& span) {
  for (uint64_t at = span.begin; at < span.end; at += 4096) {
    (void)*reinterpret_cast<const volatile char*>(at);
  }
}

// Streams all spans, touching each; the most that smaps ever shows.
uint64_t peak_of(
    WindowStreamer& streamer,
    const std::vector<ByteRange>& spans,
    const TestMapping& mapping) {
  uint64_t peak = 0;
  size_t index = 0;
  for (size_t window = 0; window < streamer.window_ends().size(); ++window) {
    streamer.enter(window);
    EXPECT(streamer.invariants_hold());
    peak = std::max(peak, mapping.resident().clean_bytes);
    for (; index < streamer.window_ends()[window]; ++index) {
      touch(spans[index]);
    }
    peak = std::max(peak, mapping.resident().clean_bytes);
  }
  return peak;
}

TEST(the_limit_holds_for_any_tensor_below_it) {
  const TemporaryFile file(kFileSize);
  for (const auto method : {os::ScanMethod::kBest, os::ScanMethod::kPagemap}) {
    for (const uint64_t limit : {4 * kMiB, 5 * kMiB, 32 * kMiB, 40 * kMiB}) {
      for (const uint64_t size :
           {uint64_t{4096}, uint64_t{100000}, 3 * kMiB, limit - 8192}) {
        const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
        mapping.touch();  // resident from before the stream
        const std::vector<ByteRange> spans = cut(mapping.range(), 64, size);
        WindowStreamer streamer(spans, limit, {}, method);
        EXPECT(peak_of(streamer, spans, mapping) <= limit);
        streamer.release();
        EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
        EXPECT(streamer.figures().peak_resident_bytes <= limit);
        EXPECT(streamer.figures().evicted_bytes >= kFileSize);
        EXPECT_EQ(streamer.figures().drop_error, 0);
      }
    }
  }
}

// What a touch of every 16th span maps, for each.
uint64_t mapped_by_touches(
    const TestMapping& mapping,
    const std::vector<ByteRange>& spans) {
  os::Residency residency;
  const ByteRange range = mapping.range();
  residency.drop_resident({&range, 1}, os::OtherWriters::kNone);
  uint64_t count = 0;
  for (size_t i = 0; i < spans.size(); i += 16) {
    (void)*reinterpret_cast<const volatile char*>(spans[i].begin);
    ++count;
  }
  return residency.count_resident({&range, 1}) / count;
}

TEST(of_small_tensors_that_are_read_again_single_pages_are_mapped) {
  const uint64_t page_size = os::page_size_bytes();
  const TemporaryFile file(kFileSize);
  for (const uint64_t limit : {16 * kMiB, 32 * kMiB}) {
    const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
    const std::vector<ByteRange> spans = cut(mapping.range(), 64, 100000);
    const auto passed =
        std::vector<ByteRange>(spans.begin(), spans.begin() + 64);
    WindowStreamer streamer(spans, limit);
    const bool is_possible = os::SingleFaults::are_possible();
    streamer.enter(0);
    EXPECT(mapped_by_touches(mapping, passed) > page_size);  // it is live
    EXPECT(streamer.window_ends().size() >= 3);
    streamer.enter(1);
    streamer.enter(2);
    EXPECT_EQ(mapped_by_touches(mapping, passed) == page_size, is_possible);
    streamer.enter(0);  // live again
    EXPECT(mapped_by_touches(mapping, passed) > page_size);
    streamer.end();
    EXPECT_EQ(mapped_by_touches(mapping, passed) == page_size, is_possible);
    streamer.admit(0);
    EXPECT(mapped_by_touches(mapping, {spans[0]}) > page_size);
    streamer.release();
    EXPECT(mapped_by_touches(mapping, passed) > page_size);
    streamer.enter(3);  // goes on after that
    EXPECT_EQ(mapped_by_touches(mapping, passed) == page_size, is_possible);
  }
}

TEST(large_tensors_that_are_read_again_are_mapped_as_usual) {
  const uint64_t page_size = os::page_size_bytes();
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = cut(mapping.range(), 0, 4 * kMiB);
  WindowStreamer streamer(spans, 32 * kMiB);
  EXPECT_EQ(streamer.window_limit_bytes(), 32 * kMiB);
  streamer.enter(0);
  streamer.enter(1);
  EXPECT(mapped_by_touches(mapping, {spans[0]}) > page_size);
}

TEST(windows_of_small_tensors_leave_room_for_those_read_again) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = cut(mapping.range(), 0, kMiB / 4);
  const uint64_t room = os::SingleFaults::are_possible() ? 4 * kMiB : 0;
  EXPECT_EQ(
      WindowStreamer(spans, 32 * kMiB).window_limit_bytes(),
      32 * kMiB - room);
  EXPECT_EQ(WindowStreamer(spans, 8 * kMiB).window_limit_bytes(), 8 * kMiB);
  // All of it is one window.
  EXPECT_EQ(WindowStreamer(spans, kFileSize).window_limit_bytes(), kFileSize);
}

TEST(a_tensor_above_the_limit_is_measured_and_told) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = cut(mapping.range(), 0, 16 * kMiB);
  WindowStreamer streamer(spans, 4 * kMiB);
  EXPECT_EQ(peak_of(streamer, spans, mapping), 16 * kMiB);
  streamer.release();
  EXPECT_EQ(streamer.figures().peak_resident_bytes, 16 * kMiB);
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
}

bool comes_to_hold(const TestMapping& mapping, uint64_t limit_bytes) {
  for (int i = 0; i < 10000; ++i) {
    if (mapping.resident().clean_bytes <= limit_bytes) {
      return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

bool comes_to_be_cached(uint64_t address) {
  for (int i = 0; i < 10000 && !os::is_cached(address); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return os::is_cached(address);
}

TEST(what_is_read_again_of_earlier_windows_is_given_back) {
  const TemporaryFile file(kFileSize);
  for (const uint64_t limit : {4 * kMiB, 8 * kMiB, 32 * kMiB}) {
    const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
    const std::vector<ByteRange> spans = cut(mapping.range(), 0, kMiB / 2);
    WindowStreamer streamer(spans, limit);
    for (size_t window = 0; window < streamer.window_ends().size(); ++window) {
      streamer.enter(window);
      streamer.watch_if_over_limit();
    }
    for (int pass = 0; pass < 3; ++pass) {
      mapping.touch();
      EXPECT(comes_to_hold(mapping, limit));
    }
    streamer.release();
    streamer.watch_kept();
    mapping.touch();
    EXPECT(comes_to_hold(mapping, limit));
    streamer.release();
    EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
    mapping.touch();
    EXPECT_EQ(mapping.resident().clean_bytes, kFileSize);
  }
}

// The watcher looks closer when more is mapped than the window accounts for:
// also than one of which all has been made resident in advance.
TEST(what_is_read_again_beside_a_pinned_window_is_given_back) {
  constexpr uint64_t kLimit = 12 * kMiB;
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  std::vector<ByteRange> spans;  // each at an edge of its block
  for (uint64_t i = 0; i < kFileSize; i += 2 * kMiB) {
    const uint64_t begin = mapping.range().begin + i;
    spans.push_back({begin, begin + kMiB});
  }
  WindowStreamer streamer(spans, kLimit);
  streamer.enter(0);
  streamer.watch_if_over_limit();
  streamer.enter(1);
  streamer.watch_if_over_limit();
  const uint64_t live_bytes = mapping.resident().clean_bytes;
  EXPECT(live_bytes >= 8 * kMiB);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  touch({mapping.range().begin, mapping.range().begin + 6 * kMiB});
  EXPECT(comes_to_hold(mapping, kLimit));
}

TEST(a_window_that_is_read_is_left_alone) {
  const TemporaryFile file(kFileSize);
  for (const uint64_t limit : {8 * kMiB, 32 * kMiB}) {
    const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
    const std::vector<ByteRange> spans = cut(mapping.range(), 0, 2 * kMiB);
    WindowStreamer streamer(spans, limit);
    size_t index = 0;
    for (size_t window = 0; window < streamer.window_ends().size(); ++window) {
      streamer.enter(window);
      streamer.watch_if_over_limit();
      uint64_t bytes = 0;
      for (; index < streamer.window_ends()[window]; ++index) {
        touch(spans[index]);
        bytes += spans[index].size_bytes();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_EQ(mapping.resident().clean_bytes, bytes);
    }
  }
}

TEST(pieces_of_a_tensor_above_the_limit_hold_it) {
  const TemporaryFile file(kFileSize);
  for (const uint64_t limit : {4 * kMiB, 5 * kMiB, 32 * kMiB, 40 * kMiB}) {
    const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
    mapping.touch();  // resident from before the stream
    const ByteRange span = {mapping.range().begin + 64, mapping.range().end};
    WindowStreamer streamer({span}, limit);
    streamer.enter(0);
    EXPECT(streamer.is_over_limit());
    EXPECT(limit / 2 < streamer.piece_bytes());
    for (const ByteRange& piece :
         cut(mapping.range(), 64, streamer.piece_bytes())) {
      streamer.enter_piece(piece);
      EXPECT(!streamer.is_over_limit());
      EXPECT(streamer.invariants_hold());
      touch(piece);
      EXPECT(mapping.resident().clean_bytes >= piece.size_bytes());
      EXPECT(mapping.resident().clean_bytes <= limit);
    }
    streamer.enter_piece({});
    EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
    EXPECT(streamer.figures().peak_resident_bytes <= limit);
    EXPECT(streamer.figures().evicted_bytes >= span.size_bytes());
    streamer.enter(0);
    EXPECT(streamer.is_over_limit());
  }
}

TEST(what_pieces_have_left_behind_is_not_read_ahead) {
  const TemporaryFile file(kFileSize);
  for (const bool drops_page_cache : {false, true}) {
    const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
    const uint64_t begin = mapping.range().begin;
    const ByteRange large = {begin + 16 * kMiB, begin + 48 * kMiB};
    WindowStreamer streamer(
        {{begin, large.begin}, large, {large.end, begin + kFileSize}},
        {20 * kMiB, drops_page_cache});
    streamer.enter(1);
    for (const ByteRange& piece :
         cut({begin, large.end}, 16 * kMiB, 8 * kMiB)) {
      streamer.enter_piece(piece);
      touch(piece);
    }
    // As a copy ends: with one of them once more, then none.
    streamer.enter_piece({large.begin + 4 * kMiB, large.begin + 8 * kMiB});
    streamer.enter_piece({});
    EXPECT(comes_to_be_cached(large.end));  // no earlier request is under way
    // Until nothing of it comes from requests that are under way.
    std::vector<uint64_t> cold;
    for (int i = 0; i < 500 && cold.size() < 24; ++i) {
      ckpt_streamer::testing::make_cold(file.path());
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      cold.clear();
      for (uint64_t at = begin; at < large.end; at += 2 * kMiB) {
        if (!os::is_cached(at)) {
          cold.push_back(at);
        }
      }
    }
    EXPECT_EQ(cold.size(), size_t{24});
    streamer.enter_piece({});
    EXPECT(comes_to_be_cached(large.end));
    for (const uint64_t at : cold) {
      EXPECT(!os::is_cached(at));
    }
    // The next tensor begins anew, also if it lies before.
    streamer.enter(0);
    streamer.enter_piece({begin, begin + kMiB});
    EXPECT(comes_to_be_cached(begin + 3 * kMiB));
  }
}

TEST(pieces_are_a_page_at_least) {
  const TemporaryFile file(kMiB);
  const TestMapping mapping(file.path(), kMiB, MAP_PRIVATE);
  WindowStreamer streamer({mapping.range()}, 1);
  EXPECT_EQ(streamer.piece_bytes(), os::page_size_bytes());
}

TEST(admit_keeps_the_limit_in_any_order) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = cut(mapping.range(), 64, 300000);
  WindowStreamer streamer(spans, 4 * kMiB);
  for (size_t i = 0; i < spans.size(); ++i) {
    const size_t index = i * 37 % spans.size();
    streamer.admit(index);
    touch(spans[index]);
    EXPECT(streamer.invariants_hold());
    EXPECT(mapping.resident().clean_bytes <= 4 * kMiB);
  }
}

TEST(a_part_of_a_span_makes_its_own_pages_resident_only) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = {mapping.range()};
  WindowStreamer streamer(spans, 8 * kMiB);
  const uint64_t begin = mapping.range().begin + 5 * kMiB + 12288;
  streamer.admit_part(0, {begin, begin + 2 * kMiB});
  EXPECT(!streamer.is_over_limit());
  EXPECT(mapping.resident().clean_bytes <= 2 * kMiB);
  touch({begin, begin + 2 * kMiB});
  EXPECT_EQ(mapping.resident().clean_bytes, 2 * kMiB);
  // As long as there is room, beside it.
  streamer.admit_part(0, {begin + 20 * kMiB, begin + 20 * kMiB + 1});
  touch({begin + 20 * kMiB, begin + 20 * kMiB + 1});
  EXPECT_EQ(mapping.resident().clean_bytes, 2 * kMiB + 4096);
  streamer.admit_part(0, {begin + 30 * kMiB, begin + 34 * kMiB});
  touch({begin + 30 * kMiB, begin + 34 * kMiB});
  EXPECT_EQ(mapping.resident().clean_bytes, 4 * kMiB);
  EXPECT(streamer.invariants_hold());
}

TEST(written_pages_survive_and_are_counted_apart) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = cut(mapping.range(), 64, kMiB);
  WindowStreamer streamer(spans, 4 * kMiB);
  for (uint64_t i = 0; i < kFileSize; i += 3 * kMiB) {
    mapping.bytes()[i + 100] = 'w';
  }
  const uint64_t written = mapping.resident().written_bytes;
  EXPECT(peak_of(streamer, spans, mapping) <= 4 * kMiB);
  streamer.release();
  EXPECT_EQ(streamer.written_bytes(), written);
  EXPECT_EQ(mapping.resident().written_bytes, written);
  for (uint64_t i = 0; i < kFileSize; i += kMiB) {
    EXPECT_EQ(
        mapping.bytes()[i + 100],
        i % (3 * kMiB) == 0 ? 'w' : pattern_at(i + 100));
  }
}

TEST(memory_that_is_no_private_file_mapping_has_no_extents) {
  const TemporaryFile file(kFileSize);
  const TestMapping is_shared(file.path(), kFileSize, MAP_SHARED);
  const TestMapping is_anonymous("", kFileSize, MAP_PRIVATE | MAP_ANONYMOUS);
  for (uint64_t i = 0; i < kFileSize; i += 4096) {
    is_anonymous.bytes()[i] = 'a';
  }
  is_shared.touch();
  const std::vector<ByteRange> spans = {
      is_shared.range(),
      is_anonymous.range()};
  WindowStreamer streamer(spans, kMiB);
  EXPECT(!streamer.owns_part_of(spans[0]));
  EXPECT(!streamer.owns_part_of(spans[1]));
  streamer.enter(0);
  streamer.enter(1);
  streamer.release();
  EXPECT_EQ(is_shared.resident().clean_bytes, kFileSize);
  EXPECT_EQ(is_anonymous.resident().written_bytes, kFileSize);
  EXPECT_EQ(streamer.figures().evicted_bytes, uint64_t{0});
}

TEST(bytes_outside_file_mappings_are_told) {
  const TemporaryFile file(kMiB);
  const TestMapping mapping(file.path(), kMiB, MAP_PRIVATE);
  const std::vector<char> heap(3 * kMiB);
  const auto begin = reinterpret_cast<uint64_t>(heap.data());
  const ByteRange half = {begin, begin + 2 * kMiB};
  const ByteRange rest = {begin + kMiB, begin + 3 * kMiB};
  const WindowStreamer mixed({half, mapping.range(), rest, half, {}}, kMiB);
  EXPECT_EQ(mixed.unmapped_bytes(), 3 * kMiB);
  const WindowStreamer mapped({mapping.range(), {}}, kMiB);
  EXPECT_EQ(mapped.unmapped_bytes(), uint64_t{0});
}

TEST(the_mapping_of_another_file_next_door_is_not_touched) {
  const TemporaryFile file(kFileSize);
  const TemporaryFile other(kMiB);
  // One reservation, filled with file | other | file.
  const TestMapping whole(
      "",
      2 * kFileSize + kMiB,
      MAP_PRIVATE | MAP_ANONYMOUS);
  const auto place = [&](const std::string& path, uint64_t at, uint64_t size) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    EXPECT(
        ::mmap(
            const_cast<char*>(whole.bytes()) + at,
            size,
            PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_FIXED,
            descriptor,
            0) != MAP_FAILED);
    ::close(descriptor);
  };
  place(file.path(), 0, kFileSize);
  place(other.path(), kFileSize, kMiB);
  place(file.path(), kFileSize + kMiB, kFileSize);
  whole.touch();
  const uint64_t begin = whole.range().begin;
  const std::vector<ByteRange> spans = {
      {begin, begin + kFileSize},
      {begin + kFileSize + kMiB, whole.range().end}};
  WindowStreamer streamer(spans, 4 * kMiB);
  streamer.enter(0);
  streamer.release();
  EXPECT_EQ(whole.resident().clean_bytes, kMiB);
}

TEST(disowned_memory_is_not_touched_again) {
  const TemporaryFile file(kFileSize);
  const TestMapping first(file.path(), kFileSize, MAP_PRIVATE);
  const TestMapping second(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = {
      {first.range().begin, first.range().begin + kMiB},
      {second.range().begin, second.range().begin + kMiB}};
  WindowStreamer streamer(spans, 4 * kMiB);
  streamer.enter(0);
  touch(spans[0]);
  touch(spans[1]);
  streamer.disown({spans[0].begin + 4096, spans[0].begin + 8192});
  const uint64_t resident = first.resident().clean_bytes;
  EXPECT(resident > 0);
  EXPECT(!streamer.owns_part_of(spans[0]));
  EXPECT(streamer.owns_part_of(spans[1]));
  EXPECT_EQ(streamer.resident_bytes(), second.resident().clean_bytes);
  streamer.enter(0);  // makes its edges resident, where it may
  streamer.release();
  EXPECT_EQ(first.resident().clean_bytes, resident);
  EXPECT_EQ(second.resident().clean_bytes, uint64_t{0});
}

TEST(release_drops_what_came_back) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = cut(mapping.range(), 0, kMiB);
  WindowStreamer streamer(spans, 4 * kMiB);
  streamer.enter(0);
  streamer.release();
  streamer.release();
  mapping.touch();
  streamer.release();
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
}

TEST(destruction_releases) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  {
    const std::vector<ByteRange> spans = cut(mapping.range(), 0, kMiB);
    WindowStreamer streamer(spans, 4 * kMiB);
    streamer.enter(0);
    touch(spans[0]);
    EXPECT(mapping.resident().clean_bytes > 0);
  }
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
}

TEST(shared_bytes_are_counted_once) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const uint64_t begin = mapping.range().begin;
  const WindowStreamer streamer(
      {{},
       {begin, begin + 100},
       {begin, begin + 50},
       {begin + 60, begin + 130}},
      kMiB);
  EXPECT_EQ(streamer.covered_bytes(0), uint64_t{0});
  EXPECT_EQ(streamer.covered_bytes(2), uint64_t{100});
  EXPECT_EQ(streamer.covered_bytes(4), uint64_t{130});
}

TEST(without_page_tables_the_excess_is_told) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = cut(mapping.range(), 0, kMiB);
  WindowStreamer streamer(spans, 4 * kMiB, {}, os::ScanMethod::kNone);
  peak_of(streamer, spans, mapping);
  EXPECT_EQ(mapping.resident().clean_bytes, kFileSize);
  EXPECT_EQ(streamer.figures().evicted_bytes, uint64_t{0});
  EXPECT(streamer.figures().peak_resident_bytes >= kFileSize - 4 * kMiB);
  EXPECT(streamer.figures().drop_error != 0);
}

TEST(what_another_thread_reads_again_is_counted_once) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const std::vector<ByteRange> spans = cut(mapping.range(), 64, 300000);
  for (const uint64_t limit : {4 * kMiB, 32 * kMiB}) {
    const OtherThreads none{[] { return os::OtherWriters::kNone; }, {}};
    WindowStreamer streamer(spans, limit, none);
    const size_t last = streamer.window_ends().size() - 1;
    // A refusal stays known, also when nothing is refused afterwards.
    EXPECT_EQ(
        ::mlock2(
            const_cast<char*>(mapping.bytes()),
            os::page_size_bytes(),
            MLOCK_ONFAULT),  // else it is written to
        0);
    (void)mapping.bytes()[0];
    streamer.enter(0);
    streamer.enter(last);
    EXPECT_EQ(streamer.figures().drop_error, EINVAL);
    EXPECT(streamer.figures().undropped_bytes >= os::page_size_bytes());
    ::syscall(  // ASan stubs munlock()
        SYS_munlock,
        mapping.bytes(),
        os::page_size_bytes());
    streamer.release();
    EXPECT_EQ(streamer.figures().undropped_bytes, uint64_t{0});

    // Of each window, something is read again while it is dropped.
    std::atomic<bool> ends = false;
    std::thread reader([&] {
      while (!ends) {
        for (size_t i = 0; i < spans.size(); i += 4) {
          (void)*reinterpret_cast<const volatile char*>(spans[i].begin);
        }
      }
    });
    for (int pass = 0; pass < 30; ++pass) {
      for (size_t window = 0; window <= last; ++window) {
        streamer.enter(window);
      }
    }
    ends = true;
    reader.join();
    const uint64_t resident = mapping.resident().clean_bytes;
    streamer.enter(0);
    EXPECT(streamer.figures().undropped_bytes <= resident);
    EXPECT_EQ(streamer.figures().drop_error, EINVAL);
    streamer.release();
    streamer.enter(0);
    streamer.enter(last);
    EXPECT_EQ(streamer.figures().undropped_bytes, uint64_t{0});
  }
}

// After a streamer was made, which prefers huge pages.
void map_by_pages(const TestMapping& mapping) {
  const ByteRange range = mapping.range();
  os::advise_huge_pages({&range, 1}, os::HugePages::kAvoid);
}

// At rest, and not to be had: counts how often they were asked.
OtherThreads none_that_help(size_t& call_count) {
  return {
      [] { return os::OtherWriters::kNone; },
      [&](size_t, const std::function<void(size_t)>&) {
        ++call_count;
        return false;
      }};
}

TEST(a_large_window_is_dropped_by_several_threads) {
  constexpr uint64_t kLargeFile = 272 * kMiB;
  const TemporaryFile file(kLargeFile);
  const TestMapping mapping(file.path(), kLargeFile, MAP_PRIVATE);
  std::atomic<size_t> task_count = 0;
  const OtherThreads threads{
      [] { return os::OtherWriters::kNone; },
      [&](size_t count, const std::function<void(size_t)>& task) {
        std::vector<std::thread> workers;
        for (size_t i = 0; i < count; ++i) {
          workers.emplace_back([&, i] {
            ++task_count;
            task(i);
          });
        }
        for (std::thread& worker : workers) {
          worker.join();
        }
        return true;
      }};
  // With a hole in it, and one page that is written to.
  const uint64_t begin = mapping.range().begin;
  std::vector<ByteRange> spans = cut(mapping.range(), 0, kMiB);
  spans.erase(spans.begin() + 20, spans.begin() + 28);
  WindowStreamer streamer(spans, kLargeFile, threads);
  streamer.enter(0);
  map_by_pages(mapping);
  auto* const written = reinterpret_cast<volatile char*>(begin + 40 * kMiB);
  *written = 'w';
  mapping.touch();
  streamer.release();
  EXPECT(task_count > 1);
  EXPECT_EQ(*written, 'w');
  EXPECT_EQ(streamer.written_bytes(), os::page_size_bytes());
  EXPECT_EQ(streamer.resident_bytes(), uint64_t{0});
  EXPECT_EQ(streamer.figures().undropped_bytes, uint64_t{0});
  EXPECT(
      streamer.figures().evicted_bytes >=
      kLargeFile - 8 * kMiB - os::page_size_bytes());
  EXPECT(streamer.figures().evicted_bytes <= kLargeFile);
}

TEST(a_large_window_is_dropped_by_the_caller_if_it_is_alone) {
  constexpr uint64_t kLargeFile = 272 * kMiB;
  const TemporaryFile file(kLargeFile);
  const TestMapping mapping(file.path(), kLargeFile, MAP_PRIVATE);
  size_t call_count = 0;
  const OtherThreads threads = none_that_help(call_count);
  WindowStreamer streamer(cut(mapping.range(), 0, kMiB), kLargeFile, threads);
  streamer.enter(0);
  map_by_pages(mapping);
  mapping.touch();
  streamer.release();
  EXPECT(call_count > 0);
  EXPECT_EQ(streamer.resident_bytes(), uint64_t{0});
  EXPECT_EQ(streamer.figures().undropped_bytes, uint64_t{0});
}

TEST(of_a_large_window_huge_pages_are_dropped_by_the_caller) {
  constexpr uint64_t kLargeFile = 272 * kMiB;
  const TemporaryFile file(kLargeFile);
  make_cold(file.path());  // in large folios from then on
  const TestMapping mapping(file.path(), kLargeFile, MAP_PRIVATE);
  size_t call_count = 0;
  const OtherThreads threads = none_that_help(call_count);
  WindowStreamer streamer(cut(mapping.range(), 0, kMiB), kLargeFile, threads);
  streamer.enter(0);
  mapping.touch();
  const uint64_t huge_bytes = mapping.resident().huge_bytes;
  const size_t call_count_before = call_count;
  streamer.release();
  const ByteRange blocks = {
      round_up(mapping.range().begin, os::fault_extent_bytes()),
      round_down(mapping.range().end, os::fault_extent_bytes())};
  if (huge_bytes == blocks.size_bytes()) {
    EXPECT_EQ(call_count, call_count_before);
  } else if (huge_bytes == 0) {  // as on file systems without large folios
    EXPECT(call_count > call_count_before);
  }
  EXPECT_EQ(streamer.resident_bytes(), uint64_t{0});
}

TEST(a_large_cached_window_is_mapped_ahead_where_a_processor_is_left) {
  constexpr uint64_t kLargeFile = 320 * kMiB;
  constexpr uint64_t kLimit = 144 * kMiB;
  const TemporaryFile file(kLargeFile);
  const TestMapping mapping(file.path(), kLargeFile, MAP_PRIVATE);
  mapping.touch();
  OtherThreads threads{[] { return os::OtherWriters::kNone; }};
  threads.leave_a_processor = [] { return true; };
  WindowStreamer streamer(cut(mapping.range(), 0, 4 * kMiB), kLimit, threads);
  EXPECT_EQ(streamer.window_ends().size(), size_t{3});
  for (size_t window = 0; window < 3; ++window) {
    streamer.enter(window);
    if (window < 2) {
      EXPECT(mapping.comes_to_hold(128 * kMiB));
    } else {  // no more than a few tensors
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT(mapping.resident().clean_bytes < 8 * kMiB);
    }
    EXPECT(mapping.resident().clean_bytes <= kLimit);
  }
  streamer.enter(0);
  streamer.release();  // in the midst of it
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
  EXPECT(streamer.figures().peak_resident_bytes <= kLimit);

  // Not beside a reader of earlier windows.
  WindowStreamer again(cut(mapping.range(), 0, 4 * kMiB), kLimit, threads);
  again.enter(0);
  again.enter(1);
  again.watch_if_over_limit();
  EXPECT(mapping.comes_to_hold(128 * kMiB));
  for (int i = 0; i < 200; ++i) {
    touch({mapping.range().begin, mapping.range().begin + 100 * kMiB});
  }
  const uint64_t evicted_before = again.figures().evicted_bytes;
  EXPECT(evicted_before > 128 * kMiB);  // the watcher's doing
  again.enter(0);
  again.watch_if_over_limit();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT(mapping.resident().clean_bytes < 128 * kMiB);
  again.release();

  threads.leave_a_processor = [] { return false; };
  WindowStreamer alone(cut(mapping.range(), 0, 4 * kMiB), kLimit, threads);
  alone.enter(0);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
}

// Files that are mapped one after the other mostly lie one below the other.
TEST(bytes_of_files_in_any_order_of_addresses_count_once) {
  const std::vector<ByteRange> spans{
      {8000, 8100},
      {8050, 8200},
      {},
      {1000, 1100},
      {1100, 1150},
      {8150, 8250},
      {1000, 1150}};
  const WindowStreamer streamer(spans, kMiB);
  const uint64_t expected[] = {0, 100, 200, 200, 300, 350, 400, 400};
  for (size_t i = 0; i <= spans.size(); ++i) {
    EXPECT_EQ(streamer.covered_bytes(i), expected[i]);
  }
}

TEST(window_streamer_counts_held_memory_with_the_pages) {
  WindowStreamer streamer({}, kMiB);
  EXPECT_EQ(streamer.resident_bytes(), 0U);
  streamer.note_held(3000);
  streamer.note_held(2000);
  EXPECT_EQ(streamer.resident_bytes(), 2000U);
  streamer.release();
  EXPECT_EQ(streamer.figures().peak_resident_bytes, 3000U);
  streamer.note_held(4000);
  streamer.note_held(0);
  EXPECT_EQ(streamer.resident_bytes(), 0U);
  streamer.release();
  EXPECT_EQ(streamer.figures().peak_resident_bytes, 4000U);
}

// Streams all spans and counts the bytes that are not the file's.
uint64_t wrong_bytes(
    const TestMapping& mapping,
    const std::vector<ByteRange>& spans,
    uint64_t limit) {
  WindowStreamer streamer(spans, limit);
  uint64_t wrong = 0;
  size_t index = 0;
  for (size_t window = 0; window < streamer.window_ends().size(); ++window) {
    streamer.enter(window);
    for (; index < streamer.window_ends()[window]; ++index) {
      const uint64_t begin = spans[index].begin - mapping.range().begin;
      const uint64_t end = spans[index].end - mapping.range().begin;
      for (uint64_t at = begin; at < end; at += 977) {
        wrong += mapping.bytes()[at] != pattern_at(at) ? 1 : 0;
      }
    }
    if (window % 3 == 0) {
      streamer.release();
    }
  }
  return wrong;
}

TEST(threads_stream_one_mapping_with_limits_of_their_own) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  ckpt_streamer::testing::make_cold(file.path());  // and all of them read ahead
  const std::vector<ByteRange> spans = cut(mapping.range(), 64, 300000);
  std::atomic<uint64_t> wrong = 0;
  std::vector<std::thread> threads;
  for (const uint64_t limit : {4 * kMiB, 7 * kMiB, 32 * kMiB, 40 * kMiB}) {
    threads.emplace_back([&, limit] {
      for (int i = 0; i < 3; ++i) {
        wrong += wrong_bytes(mapping, spans, limit);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong.load(), uint64_t{0});
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
}

// As one that looks tensors up beside an iteration, made and not read from.
TEST(the_limit_holds_beside_a_stream_that_prefers_huge_pages) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  const ByteRange range = mapping.range();
  ckpt_streamer::testing::make_cold(file.path());
  os::advise_huge_pages({&range, 1}, os::HugePages::kPrefer);
  mapping.touch();  // cached as huge pages, where files have them
  const std::vector<ByteRange> spans = cut(range, 64, 300000);
  const OtherThreads none{[] { return os::OtherWriters::kNone; }, {}};
  WindowStreamer streamer(spans, 4 * kMiB, none);
  const WindowStreamer beside(spans, 64 * kMiB);
  EXPECT(peak_of(streamer, spans, mapping) <= 4 * kMiB);
}

TEST(what_is_held_beside_a_share_is_on_top_of_the_limit) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  Bounds bounds(28 * kMiB);
  bounds.beside_bytes = 4 * kMiB;
  bounds.budget = std::make_shared<MemoryBudget>(256 * kMiB);
  WindowStreamer streamer({mapping.range()}, bounds);
  streamer.enter(0);  // larger than the limit: as much as may be
  EXPECT_EQ(streamer.window_limit_bytes(), 28 * kMiB);
  EXPECT_EQ(bounds.budget->held_bytes(), 32 * kMiB);
}

TEST(a_streamer_goes_from_thread_to_thread) {
  const TemporaryFile file(kFileSize);
  const TestMapping mapping(file.path(), kFileSize, MAP_PRIVATE);
  ckpt_streamer::testing::make_cold(file.path());
  const std::vector<ByteRange> spans = cut(mapping.range(), 64, 300000);
  auto streamer = std::make_unique<WindowStreamer>(spans, 8 * kMiB);
  std::mutex mutex;  // as the handles have it
  size_t next = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (;;) {
        const std::lock_guard lock(mutex);
        if (next == streamer->window_ends().size()) {
          return;
        }
        streamer->enter(next++);
        (void)streamer->resident_bytes();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  std::thread([&] { streamer.reset(); }).join();
  EXPECT_EQ(mapping.resident().clean_bytes, uint64_t{0});
}

}  // namespace
}  // namespace ckpt_streamer::stream
