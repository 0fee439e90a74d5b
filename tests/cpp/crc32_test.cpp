#include "base/crc32.h"

#include <string>
#include <string_view>

#include "test_macros.h"

namespace ckpt_streamer {
namespace {

uint32_t crc_of(std::string_view text, uint32_t crc = 0) {
  return crc32(std::as_bytes(std::span(text.data(), text.size())), crc);
}

TEST(crc32_of_known_texts) {
  EXPECT_EQ(crc_of(""), 0U);
  EXPECT_EQ(crc_of("a"), 0xE8B7BE43);
  // The check value of the CRC catalogues.
  EXPECT_EQ(crc_of("123456789"), 0xCBF43926);
  EXPECT_EQ(crc_of("The quick brown fox jumps over the lazy dog"), 0x414FA339U);
  EXPECT_EQ(crc_of(std::string(32, '\0')), 0x190A55ADU);
  EXPECT_EQ(crc_of(std::string(32, '\xff')), 0xFF6CAB0BU);
}

TEST(crc32_goes_on_where_it_was) {
  std::string text;
  for (int i = 0; i < 200; ++i) {
    text += static_cast<char>(i * 7);
  }
  const uint32_t whole = crc_of(text);
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const std::string_view view = text;
    EXPECT_EQ(crc_of(view.substr(cut), crc_of(view.substr(0, cut))), whole);
  }
}

}  // namespace
}  // namespace ckpt_streamer
