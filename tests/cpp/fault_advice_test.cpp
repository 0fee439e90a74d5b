#include "stream/fault_advice.h"

#include <fstream>
#include <memory>
#include <string>

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

}  // namespace
}  // namespace ckpt_streamer::stream
