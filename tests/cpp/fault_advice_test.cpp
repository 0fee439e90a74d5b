#include "stream/fault_advice.h"

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "os/single_faults.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::stream {
namespace {

using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;
using os::HugePages;

constexpr uint64_t kSize = uint64_t{4} << 20;

// From /proc/self/smaps.
std::string flags_of(const TestMapping& mapping) {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  while (std::getline(smaps, line)) {
    unsigned long long begin = 0;
    unsigned long long end = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &begin, &end) == 2) {
      inside = ByteRange{begin, end}.contains(mapping.range());
    } else if (inside && line.starts_with("VmFlags:")) {
      return line;
    }
  }
  return "";
}

// A mapping, and the flags that it has with each advice: the same, where files
// have no huge pages.
struct Advised {
  Advised() : mapping(file.path(), kSize, MAP_PRIVATE) {
    avoided = flags_after(HugePages::kAvoid);
    preferred = flags_after(HugePages::kPrefer);
  }
  std::string flags_after(HugePages wanted) const {
    const ByteRange range = mapping.range();
    os::advise_huge_pages({&range, 1}, wanted);
    return flags_of(mapping);
  }
  std::unique_ptr<FaultAdvice> advise(HugePages wanted) const {
    return std::make_unique<FaultAdvice>(
        std::vector<ByteRange>{mapping.range()},
        wanted);
  }

  TemporaryFile file{kSize};
  TestMapping mapping;
  std::string avoided;
  std::string preferred;
};

TEST(huge_pages_are_avoided_as_long_as_one_stream_wants_that) {
  const Advised one;
  const auto prefers = one.advise(HugePages::kPrefer);
  EXPECT_EQ(flags_of(one.mapping), one.preferred);
  auto avoids = one.advise(HugePages::kAvoid);
  EXPECT_EQ(flags_of(one.mapping), one.avoided);
  const auto prefers_too = one.advise(HugePages::kPrefer);
  EXPECT_EQ(flags_of(one.mapping), one.avoided);
  auto avoids_too = one.advise(HugePages::kAvoid);
  avoids.reset();
  EXPECT_EQ(flags_of(one.mapping), one.avoided);
  avoids_too.reset();
  EXPECT_EQ(flags_of(one.mapping), one.preferred);
}

TEST(advice_of_a_stream_alone_stays) {
  const Advised one;
  one.advise(HugePages::kAvoid);
  EXPECT_EQ(flags_of(one.mapping), one.avoided);
  one.advise(HugePages::kPrefer);
  EXPECT_EQ(flags_of(one.mapping), one.preferred);
}

TEST(what_is_avoided_on_other_mappings_does_not_matter) {
  const Advised one;
  const Advised other;
  const auto avoids = other.advise(HugePages::kAvoid);
  const auto prefers = one.advise(HugePages::kPrefer);
  EXPECT_EQ(flags_of(one.mapping), one.preferred);
  EXPECT_EQ(flags_of(other.mapping), other.avoided);
}

TEST(no_advice_is_given_of_disowned_mappings) {
  const Advised one;
  const auto prefers = one.advise(HugePages::kPrefer);
  auto avoids = one.advise(HugePages::kAvoid);
  const uint64_t begin = one.mapping.range().begin;
  avoids->disown({begin + 4096, begin + 8192});
  avoids.reset();
  EXPECT_EQ(flags_of(one.mapping), one.avoided);
}

// Three parts of the mapping, apart from each other.
ByteRange part_of(const Advised& one, uint64_t i) {
  const uint64_t begin = one.mapping.range().begin + i * kSize / 4;
  return {begin, begin + kSize / 8};
}

// What one touched byte of a part maps of it.
uint64_t mapped_by_touch(const Advised& one, uint64_t i) {
  const ByteRange range = one.mapping.range();
  os::Residency residency;
  residency.drop_resident({&range, 1}, os::OtherWriters::kNone);
  (void)one.mapping.bytes()[part_of(one, i).begin - range.begin + 70000];
  return residency.count_resident({&range, 1});
}

bool is_limited(const Advised& one, uint64_t i) {
  return mapped_by_touch(one, i) == os::page_size_bytes();
}

TEST(faults_are_limited_until_somebody_lifts_that) {
  const Advised one;
  const bool is_possible = os::SingleFaults::are_possible();
  const auto first = one.advise(HugePages::kPrefer);
  const auto second = one.advise(HugePages::kPrefer);
  EXPECT(!is_limited(one, 0));
  first->limit_to_pages(
      std::vector<ByteRange>{part_of(one, 0), part_of(one, 1)});
  second->limit_to_pages(
      std::vector<ByteRange>{part_of(one, 1), part_of(one, 2)});
  for (uint64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(is_limited(one, i), is_possible);
  }
  // What a third one prefers leaves them alone.
  const auto third = one.advise(HugePages::kPrefer);
  EXPECT_EQ(is_limited(one, 0), is_possible);
  // Whoever has limited it.
  const ByteRange last = part_of(one, 2);
  first->lift({&last, 1});
  EXPECT(!is_limited(one, 2));
  // But for what another one wants so.
  first->lift_all();
  EXPECT(!is_limited(one, 0));
  EXPECT_EQ(is_limited(one, 1), is_possible);
  second->lift_all();
  EXPECT(!is_limited(one, 1));
}

TEST(huge_pages_are_preferred_in_exceptions_until_the_next_ones) {
  const Advised one;
  const ByteRange range = one.mapping.range();
  auto avoids = one.advise(HugePages::kAvoid);
  EXPECT_EQ(flags_of(one.mapping), one.avoided);
  avoids->prefer_huge_pages_only_in({&range, 1});
  EXPECT_EQ(flags_of(one.mapping), one.preferred);
  avoids->prefer_huge_pages_only_in({});
  EXPECT_EQ(flags_of(one.mapping), one.avoided);
  {
    const auto avoids_too = one.advise(HugePages::kAvoid);
    avoids->prefer_huge_pages_only_in({&range, 1});
    EXPECT_EQ(flags_of(one.mapping), one.avoided);
  }
  avoids->prefer_huge_pages_only_in({&range, 1});
  avoids.reset();
  EXPECT_EQ(flags_of(one.mapping), one.avoided);
}

TEST(of_disowned_mappings_the_limits_are_forgotten_alone) {
  const Advised one;
  const ByteRange range = one.mapping.range();
  const ByteRange first = {range.begin, range.begin + kSize / 2};
  const ByteRange second = {first.end, range.end};
  FaultAdvice advice({first, second}, HugePages::kPrefer);
  advice.limit_to_pages({&range, 1});
  advice.disown({range.begin, range.begin + 1});
  const bool is_possible = os::SingleFaults::are_possible();
  EXPECT_EQ(is_limited(one, 3), is_possible);
  advice.lift_all();
  EXPECT(!is_limited(one, 3));
}

TEST(limits_of_faults_end_with_their_stream) {
  const Advised one;
  auto advice = one.advise(HugePages::kPrefer);
  const ByteRange first = part_of(one, 0);
  advice->limit_to_pages({&first, 1});
  EXPECT_EQ(is_limited(one, 0), os::SingleFaults::are_possible());
  advice.reset();
  EXPECT(!is_limited(one, 0));
  EXPECT_EQ(flags_of(one.mapping), one.preferred);
}

TEST(huge_pages_stay_avoided_where_limits_are_lifted) {
  const Advised one;
  const auto prefers = one.advise(HugePages::kPrefer);
  const auto avoids = one.advise(HugePages::kAvoid);
  const ByteRange first = part_of(one, 0);
  prefers->limit_to_pages({&first, 1});
  prefers->lift({&first, 1});
  EXPECT_EQ(flags_of(one.mapping), one.avoided);
}

}  // namespace
}  // namespace ckpt_streamer::stream
