#include "stream/cache_dropper.h"

#include "os/advise.h"
#include "os/residency.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::stream {
namespace {

using ckpt_streamer::testing::make_cold;
using ckpt_streamer::testing::TemporaryFile;
using ckpt_streamer::testing::TestMapping;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kSize = 64 * kMib;

// A file on the disk that is cached as a whole, and that nobody maps a page of.
class CachedFile {
 public:
  CachedFile() : path_(kSize), mapping_(path_.path(), kSize, MAP_PRIVATE) {
    make_cold(path_.path());
    mapping_.touch();
    unmap();
  }

  const std::string& path() const {
    return path_.path();
  }
  const TestMapping& mapping() const {
    return mapping_;
  }
  ByteRange part(uint64_t begin, uint64_t end) const {
    return {mapping_.range().begin + begin, mapping_.range().begin + end};
  }
  void unmap() const {
    const ByteRange range = mapping_.range();
    os::Residency().drop_resident({&range, 1}, os::OtherWriters::kNone);
  }

 private:
  TemporaryFile path_;
  TestMapping mapping_;
};

TEST(what_was_streamed_goes_from_the_cache_and_the_rest_stays) {
  const CachedFile file;
  CacheDropper dropper;
  const ByteRange streamed = file.part(16 * kMib, 32 * kMib);
  dropper.add({&streamed, 1});
  dropper.drop({});
  // With what may have been read around it, of whole blocks.
  const uint64_t left = file.mapping().cached_bytes();
  EXPECT(left <= kSize - 16 * kMib);
  EXPECT(left >= kSize - 32 * kMib);
  dropper.drop_all();
  EXPECT_EQ(dropper.undropped_bytes(), uint64_t{0});
  EXPECT_EQ(dropper.unreachable_bytes(), uint64_t{0});
}

TEST(what_is_needed_next_stays_cached) {
  const CachedFile file;
  CacheDropper dropper;
  const ByteRange streamed = file.part(0, 33 * kMib);
  const ByteRange kept = file.part(33 * kMib, kSize);
  dropper.add({&streamed, 1});
  dropper.drop({&kept, 1});
  // The block that both lie in, as well.
  EXPECT_EQ(file.mapping().cached_bytes(), kSize - 32 * kMib);
  dropper.add({&kept, 1});
  dropper.drop({});
  EXPECT_EQ(file.mapping().cached_bytes(), uint64_t{0});
}

TEST(what_comes_back_late_goes_with_the_next) {
  const CachedFile file;
  CacheDropper dropper;
  const ByteRange first = file.part(0, 16 * kMib);
  const ByteRange kept = file.part(32 * kMib, kSize);
  dropper.add({&first, 1});
  dropper.drop({&kept, 1});
  file.mapping().touch();
  file.unmap();
  const ByteRange second = file.part(16 * kMib, 32 * kMib);
  dropper.add({&second, 1});
  dropper.drop({&kept, 1});
  EXPECT_EQ(file.mapping().cached_bytes(), kSize - 32 * kMib);
}

TEST(what_is_mapped_stays_and_is_counted) {
  const CachedFile file;
  const TestMapping other(file.path(), kSize, MAP_PRIVATE);
  (void)other.bytes()[0];
  const uint64_t mapped = other.resident().clean_bytes;
  EXPECT(mapped > 0);
  CacheDropper dropper;
  const ByteRange streamed = file.part(0, kSize);
  dropper.add({&streamed, 1});
  dropper.drop_all();
  // A folio that is mapped in part stays as a whole.
  EXPECT(dropper.undropped_bytes() >= mapped);
  EXPECT(dropper.undropped_bytes() <= os::fault_extent_bytes());
  EXPECT_EQ(dropper.undropped_bytes(), file.mapping().cached_bytes());
}

TEST(memory_without_a_file_is_told) {
  const TestMapping mapping("", kSize, MAP_PRIVATE | MAP_ANONYMOUS);
  CacheDropper dropper;
  const ByteRange range = mapping.range();
  dropper.add({&range, 1});
  dropper.drop({});
  dropper.drop_all();
  EXPECT_EQ(dropper.unreachable_bytes(), kSize);
  dropper.add({&range, 1});  // as a second pass does
  dropper.drop({});
  EXPECT_EQ(dropper.unreachable_bytes(), kSize);
}

TEST(what_lies_behind_memory_without_a_file_goes_all_the_same) {
  const CachedFile file;
  const TestMapping whole("", 2 * kSize, MAP_PRIVATE | MAP_ANONYMOUS);
  const uint64_t middle = whole.range().begin + kSize;
  const int descriptor = ::open(file.path().c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT(
      ::mmap(
          os::pointer_to(middle),
          kSize,
          PROT_READ,
          MAP_PRIVATE | MAP_FIXED,
          descriptor,
          0) != MAP_FAILED);
  ::close(descriptor);
  CacheDropper dropper;
  // They come as one, as neighbours do.
  const ByteRange parts[] = {
      {whole.range().begin, middle},
      {middle, whole.range().end}};
  dropper.add(parts);
  dropper.drop_all();
  EXPECT_EQ(dropper.unreachable_bytes(), kSize);
  EXPECT_EQ(file.mapping().cached_bytes(), uint64_t{0});
}

}  // namespace
}  // namespace ckpt_streamer::stream
