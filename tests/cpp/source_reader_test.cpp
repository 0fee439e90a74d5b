#include "format/source_reader.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>

#include "memory_source.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::MemorySource;

constexpr uint64_t kBufferBytes = 64 * 1024;

std::string pattern(size_t count) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) {
    bytes += static_cast<char>('a' + i * 7 % 26 + i / 4096 % 3);
  }
  return bytes;
}

std::string taken(SourceReader& reader, uint64_t byte_count) {
  const std::byte* const bytes = reader.take(byte_count);
  return {reinterpret_cast<const char*>(bytes), byte_count};
}

TEST(source_reader_takes_its_range_in_pieces_of_any_size) {
  const std::string bytes = pattern(300'000);
  const MemorySource source(bytes);
  for (const uint64_t piece :
       {uint64_t{1000},
        kBufferBytes - 1,
        kBufferBytes,
        kBufferBytes + 1,
        3 * kBufferBytes}) {
    SourceReader reader(source, {10, bytes.size() - 10});
    std::string all;
    while (reader.remaining_bytes() > 0) {
      EXPECT_EQ(reader.file_offset(), 10 + all.size());
      EXPECT(reader.buffered_bytes() <= reader.remaining_bytes());
      all += taken(reader, std::min(piece, reader.remaining_bytes()));
      all += taken(reader, std::min<uint64_t>(1, reader.remaining_bytes()));
    }
    EXPECT(all == bytes.substr(10, bytes.size() - 20));
    EXPECT_EQ(reader.file_offset(), bytes.size() - 10);
  }
}

TEST(source_reader_fills_memory_of_the_callers) {
  const std::string bytes = pattern(300'000);
  const MemorySource source(bytes);
  SourceReader reader(source, {0, bytes.size()});
  EXPECT_EQ(taken(reader, 5), bytes.substr(0, 5));
  std::string out(200'000, '\0');
  reader.take_into(std::as_writable_bytes(std::span(out)));
  EXPECT(out == bytes.substr(5, 200'000));
  EXPECT_EQ(reader.file_offset(), 200'005U);
  EXPECT_EQ(taken(reader, 5), bytes.substr(200'005, 5));
  out.resize(10);
  reader.take_into(std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(out, bytes.substr(200'010, 10));
  reader.take_into({});
  EXPECT_EQ(reader.remaining_bytes(), bytes.size() - 200'020);
}

// Says how much of it was read.
class CountingSource final : public ByteSource {
 public:
  explicit CountingSource(std::string bytes) : source_(std::move(bytes)) {}
  [[nodiscard]] const std::string& path() const noexcept override {
    return source_.path();
  }
  [[nodiscard]] uint64_t size_bytes() const noexcept override {
    return source_.size_bytes();
  }
  void read(uint64_t file_offset, std::span<std::byte> out) const override {
    read_bytes += out.size();
    source_.read(file_offset, out);
  }
  [[nodiscard]] ByteView view(const ByteRange& range) const override {
    return source_.view(range);
  }

  mutable uint64_t read_bytes = 0;

 private:
  MemorySource source_;
};

TEST(source_reader_skips_without_reading) {
  const std::string bytes = pattern(1'000'000);
  const CountingSource source(bytes);
  SourceReader reader(source, {0, bytes.size()});
  reader.skip(500'000);
  EXPECT_EQ(source.read_bytes, 0U);
  const std::byte* const next = reader.peek(5);
  EXPECT_EQ(
      std::string(reinterpret_cast<const char*>(next), 5),
      bytes.substr(500'000, 5));
  EXPECT_EQ(taken(reader, 5), bytes.substr(500'000, 5));
  // Inside what is buffered, and beyond it.
  reader.skip(10);
  EXPECT_EQ(taken(reader, 5), bytes.substr(500'015, 5));
  reader.skip(400'000);
  EXPECT_EQ(source.read_bytes, kBufferBytes);
  EXPECT_EQ(reader.file_offset(), 900'020U);
  EXPECT_EQ(taken(reader, 5), bytes.substr(900'020, 5));
  EXPECT_EQ(source.read_bytes, 2 * kBufferBytes);
  reader.skip(reader.remaining_bytes());
  EXPECT_EQ(reader.file_offset(), bytes.size());
}

TEST(source_reader_takes_lines_of_any_length) {
  for (const uint64_t length :
       {uint64_t{0},
        uint64_t{1},
        kBufferBytes - 2,
        kBufferBytes - 1,
        kBufferBytes,
        5 * kBufferBytes}) {
    const std::string line = pattern(length);
    const MemorySource source("x" + line + "\nlast\nrest\n");
    SourceReader reader(source, {1, source.size_bytes() - 1});
    const auto found = reader.take_line();
    EXPECT(found.has_value());
    EXPECT(*found == line);
    EXPECT_EQ(reader.file_offset(), 1 + length + 1);
    EXPECT_EQ(std::string(reader.take_line().value()), "last");
    // The newline behind it is outside the range.
    EXPECT(!reader.take_line().has_value());
    EXPECT_EQ(taken(reader, 4), "rest");
    EXPECT(!reader.take_line().has_value());
  }
}

}  // namespace
}  // namespace ckpt_streamer::format
