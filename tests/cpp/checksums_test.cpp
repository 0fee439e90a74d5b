#include "format/checksums.h"

#include <algorithm>

#include "format/open_index.h"
#include "memory_source.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::MemorySource;
namespace p = testing::pickle;

constexpr uint32_t kCheckValue = 0xCBF43926;

// Says how much was read at once at most.
class WatchedSource final : public ByteSource {
 public:
  explicit WatchedSource(std::string bytes) : source_(std::move(bytes)) {}
  [[nodiscard]] const std::string& path() const noexcept override {
    return source_.path();
  }
  [[nodiscard]] uint64_t size_bytes() const noexcept override {
    return source_.size_bytes();
  }
  void read(uint64_t file_offset, std::span<std::byte> out) const override {
    largest_read_bytes = std::max(largest_read_bytes, out.size());
    source_.read(file_offset, out);
  }
  [[nodiscard]] ByteView view(const ByteRange& range) const override {
    return source_.view(range);
  }

  mutable size_t largest_read_bytes = 0;

 private:
  MemorySource source_;
};

TEST(verify_checksum_reads_in_pieces) {
  for (const uint64_t piece_bytes : {1, 2, 4, 9, 100}) {
    const WatchedSource source("__123456789__");
    verify_checksum({{2, 11}, 0, kCheckValue}, source, piece_bytes);
    EXPECT_EQ(
        source.largest_read_bytes,
        static_cast<size_t>(std::min<uint64_t>(piece_bytes, 9)));
  }
}

TEST(verify_checksum_tells_what_it_found) {
  const std::vector<testing::ZipRecord> records{
      {.name = "a/data/0", .data = "123456789"}};
  const MemorySource source(testing::build_zip(records));
  const uint64_t begin = 30 + 8;  // the local header and the name
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: record 'a/data/0' has the CRC-32 0xcbf43926, expected 0x00000abc "
      "as the zip's directory says [byte 38]",
      verify_checksum({{begin, begin + 9}, 0, 0xABC}, source, 4));
}

TEST(verify_checksum_of_what_is_no_zip_any_more) {
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: a record has the CRC-32 0xcbf43926, expected 0x00000abc as the "
      "zip's directory says [byte 2]",
      verify_checksum({{2, 11}, 0, 0xABC}, MemorySource("__123456789__"), 4));
}

CheckpointIndex read_zip(uint32_t crc) {
  const std::string root = p::list({p::float_vector("0", 4)});
  const std::vector<testing::ZipRecord> records{
      {.name = "a/data.pkl", .data = p::program(root), .crc = crc},
      {.name = "a/data/0", .data = std::string(16, 'x'), .crc = crc}};
  return read_index(MemorySource(testing::build_zip(records)));
}

TEST(checksums_of_zip_records_are_in_the_index) {
  const CheckpointIndex index = read_zip(7);
  require_checksums(index);
  EXPECT_EQ(index.storages[0].crc32.value(), 7U);
  EXPECT_EQ(index.read_records.size(), 1U);
  EXPECT_EQ(index.read_records[0].crc32.value(), 7U);
}

// As torch.save writes them with set_crc32_options(False).
TEST(checksums_that_are_all_zero_are_none) {
  EXPECT_THROWS(
      CheckpointError,
      "m.pt: has no checksums to verify; expected a zip archive of torch.save "
      "or "
      "torch.jit.save that was saved with them",
      require_checksums(read_zip(0)));
}

}  // namespace
}  // namespace ckpt_streamer::format
