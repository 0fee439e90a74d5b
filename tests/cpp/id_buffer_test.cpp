#include "format/id_buffer.h"

#include <cstdint>
#include <vector>

#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

std::vector<uint32_t> all_of(const IdBuffer& buffer) {
  const auto ids = buffer.from(0);
  return {ids.begin(), ids.end()};
}

TEST(id_buffer_grows_as_a_vector_does) {
  IdBuffer buffer;
  std::vector<uint32_t> expected;
  EXPECT(buffer.from(0).empty());
  for (uint32_t i = 0; i < 1000; ++i) {
    buffer.push(i);
    expected.push_back(i);
    const std::vector<uint32_t> more(i % 7, i);
    buffer.append(more);
    expected.insert(expected.end(), more.begin(), more.end());
    EXPECT(all_of(buffer) == expected);
  }
  buffer.cut(500);
  expected.resize(500);
  buffer.pad(600, 7);
  expected.resize(600, 7);
  buffer.pad(10, 8);
  buffer[3] = 9;
  expected[3] = 9;
  buffer.reserve(10'000);
  EXPECT(all_of(buffer) == expected);
  EXPECT_EQ(buffer.size(), 600U);
  EXPECT_EQ(buffer.from(598).size(), 2U);
}

}  // namespace
}  // namespace ckpt_streamer::format
