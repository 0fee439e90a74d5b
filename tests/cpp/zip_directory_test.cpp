#include "format/zip_directory.h"

#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "memory_source.h"
#include "os/file.h"
#include "temporary_file.h"
#include "test_macros.h"

namespace ckpt_streamer::format {
namespace {

using testing::build_zip;
using testing::MemorySource;
using testing::ZipOptions;
using testing::ZipRecord;

ZipDirectory read(const std::string& file) {
  const MemorySource source(file);
  return ZipDirectory::read(source);
}

std::string data_of(const std::string& file, const std::string& name) {
  const ZipDirectory directory = read(file);
  const ZipEntry* entry = directory.find(name);
  if (entry == nullptr) {
    return "(none)";
  }
  return file.substr(entry->data_range.begin, entry->data_range.size_bytes());
}

void expect_corrupt(const std::string& file, const std::string& message) {
  EXPECT_THROWS(CheckpointError, message, read(file));
}

TEST(finds_records_behind_padding) {
  ZipRecord padded{"a/x", "hello"};
  padded.local_extra = "FB\x02\x01ZZ";
  const std::string file = build_zip({padded, {"a/y", ""}, {"a/z", "world"}});
  EXPECT_EQ(data_of(file, "a/x"), "hello");
  EXPECT_EQ(data_of(file, "a/y"), "");
  EXPECT_EQ(data_of(file, "a/z"), "world");
  EXPECT_EQ(data_of(file, "a/w"), "(none)");
  const ZipDirectory directory = read(file);
  EXPECT_EQ(directory.entries().size(), 3U);
  EXPECT_EQ(std::string(directory.entries()[2].name), "a/z");
  EXPECT_EQ(directory.entries()[0].data_range.begin, 30U + 3U + 6U);
}

TEST(survives_a_move) {
  const std::string file = build_zip({{"a/x", "hello"}});
  ZipDirectory first = read(file);
  const ZipDirectory second = std::move(first);
  EXPECT(second.find("a/x") != nullptr);
}

TEST(reads_zip64) {
  ZipRecord wide{"a/x", "hello"};
  wide.is_zip64 = true;
  ZipOptions options;
  options.is_zip64 = true;
  EXPECT_EQ(data_of(build_zip({wide, {"a/y", "z"}}, options), "a/x"), "hello");
  EXPECT_EQ(data_of(build_zip({wide, {"a/y", "z"}}, options), "a/y"), "z");
}

TEST(reads_past_a_comment_that_looks_like_an_end_record) {
  ZipOptions options;
  options.comment = "PK\x05\x06" + std::string(18, '\0') + "tail";
  EXPECT_EQ(data_of(build_zip({{"a/x", "hello"}}, options), "a/x"), "hello");
}

TEST(keeps_compressed_records_and_any_order) {
  ZipRecord deflated{"a/x", "12345"};
  deflated.method = 8;
  deflated.compressed_size = 5;
  deflated.central_size = 100;
  const std::string file = build_zip({deflated, {"a/y", "z"}});
  const ZipDirectory directory = read(file);
  EXPECT(!directory.find("a/x")->is_stored());
  EXPECT_EQ(data_of(file, "a/x"), "12345");

  // The central directory lists them the other way round.
  ZipRecord second{"a/2", "two"};
  second.local_offset = 30 + 3 + 3;
  ZipRecord first{"a/1", "one"};
  first.local_offset = 0;
  std::string swapped = build_zip({second, first});
  swapped.replace(30, 6, "a/1one");
  swapped.replace(36 + 30, 6, "a/2two");
  EXPECT_EQ(data_of(swapped, "a/1"), "one");
  EXPECT_EQ(data_of(swapped, "a/2"), "two");
}

TEST(empty_zip_has_no_entries) {
  EXPECT_EQ(read(build_zip({})).entries().size(), 0U);
}

TEST(refuses_a_truncated_file) {
  const std::string file = build_zip({{"a/x", "hello"}});
  expect_corrupt(
      file.substr(0, file.size() - 1),
      "m.pt: is truncated: no end of central directory record in its last 108 "
      "bytes, expected a whole zip file");
  expect_corrupt(
      file.substr(0, 40),
      "m.pt: is truncated: no end of central directory record in its last 40 "
      "bytes, expected a whole zip file");
  expect_corrupt(
      "PK",
      "m.pt: is truncated: no end of central directory record in its last 2 "
      "bytes, expected a whole zip file");
}

TEST(refuses_bytes_after_the_end) {
  ZipOptions options;
  options.file_suffix = "junk";
  expect_corrupt(
      build_zip({{"a/x", "hello"}}, options),
      "m.pt: the end of central directory record is followed by 4 bytes, "
      "expected a comment of 0 [byte 87]");
}

TEST(refuses_more_entries_than_fit) {
  ZipOptions options;
  options.entry_count = 60000;
  expect_corrupt(
      build_zip({{"a/x", "hello"}}, options),
      "m.pt: the central directory has 60000 entries in 49 bytes, expected at "
      "least 46 bytes an entry [byte 87]");
  options.is_zip64 = true;
  options.entry_count = uint64_t{1} << 60;
  expect_corrupt(
      build_zip({{"a/x", "hello"}}, options),
      "m.pt: the central directory has 1152921504606846976 entries in 49 "
      "bytes, expected at least 46 bytes an entry [byte 163]");
}

TEST(refuses_long_names_and_more_entries_than_follow) {
  // The names take the room that the other entries would need.
  ZipOptions options;
  options.entry_count = 20;
  expect_corrupt(
      build_zip({{std::string(1000, 'x'), "1"}, {"a/y", "2"}}, options),
      "m.pt: the central directory ends after 2 entries, expected 20 [byte "
      "2160]");
}

TEST(refuses_fewer_entries_than_there_are) {
  ZipOptions options;
  options.entry_count = 1;
  expect_corrupt(
      build_zip({{"a/x", "hello"}, {"a/y", "hello"}}, options),
      "m.pt: the central directory has 49 bytes after its last entry, expected "
      "none [byte 125]");
}

TEST(refuses_a_directory_that_reaches_past_its_end_record) {
  ZipOptions options;
  options.directory_size = 1000;
  expect_corrupt(
      build_zip({{"a/x", "hello"}}, options),
      "m.pt: the central directory has 1000 bytes from byte 38, expected it to "
      "end in front of its end record at byte 87 [byte 87]");
}

TEST(refuses_a_bad_directory_header) {
  std::string file = build_zip({{"a/x", "hello"}});
  file[38] = 'Q';
  expect_corrupt(
      file,
      "m.pt: found 51 4b 01 02, expected a central directory header (50 4b 01 "
      "02) [byte 38]");
}

TEST(refuses_a_directory_header_longer_than_the_directory) {
  std::string file = build_zip({{"a/x", "hello"}});
  file[38 + 28] = 100;
  expect_corrupt(
      file,
      "m.pt: a central directory header has 146 bytes, expected at most the "
      "remaining 49 [byte 38]");
}

TEST(refuses_disagreeing_end_records) {
  ZipOptions options;
  options.is_zip64 = true;
  std::string file = build_zip({{"a/x", "hello"}}, options);
  file.replace(file.size() - 12, 2, testing::little_endian(7, 2));
  expect_corrupt(
      file,
      "m.pt: the end of central directory record has entry count 7, expected 1 "
      "as in its zip64 record [byte 163]");
}

TEST(refuses_a_zip64_locator_that_points_nowhere) {
  ZipOptions options;
  options.is_zip64 = true;
  std::string file = build_zip({{"a/x", "hello"}}, options);
  const size_t locator = file.size() - 22 - 20;
  file.replace(locator + 8, 8, testing::little_endian(1ULL << 63, 8));
  expect_corrupt(
      file,
      "m.pt: the zip64 locator points at byte 9223372036854775808, expected a "
      "record of 56 bytes in front of the locator [byte 143]");
  file.replace(locator + 8, 8, testing::little_endian(0, 8));
  expect_corrupt(
      file,
      "m.pt: found 50 4b 03 04, expected the zip64 end of central directory "
      "record (50 4b 06 06) [byte 0]");
}

TEST(refuses_a_short_zip64_extra_field) {
  ZipRecord wide{"a/x", "hello"};
  wide.is_zip64 = true;
  std::string file = build_zip({wide});
  // The extra field's own size: 24 becomes 16, one value too few.
  file[38 + 46 + 3 + 2] = 16;
  expect_corrupt(
      file,
      "m.pt: the zip64 extra field of record 'a/x' has 16 bytes, expected 8 "
      "for each size or offset of all ones [byte 38]");
}

TEST(refuses_several_volumes) {
  std::string file = build_zip({{"a/x", "hello"}});
  file[file.size() - 22 + 4] = 1;
  expect_corrupt(
      file,
      "m.pt: is volume 1 of a multi-volume zip, expected a zip in one file "
      "[byte 87]");
}

TEST(refuses_encryption) {
  ZipRecord record{"a/x", "hello"};
  record.flags = 1;
  expect_corrupt(
      build_zip({record}),
      "m.pt: record 'a/x' is encrypted, expected plain [byte 38]");
}

TEST(refuses_duplicate_names) {
  expect_corrupt(
      build_zip({{"a/x", "1"}, {"a/y", ""}, {"a/x", "2"}}),
      "m.pt: record 'a/x' is in the central directory twice, expected distinct "
      "names [byte 67]");
}

TEST(refuses_another_name_in_the_local_header) {
  ZipRecord record{"a/x", "hello"};
  record.local_name = "a/y";
  expect_corrupt(
      build_zip({record}),
      "m.pt: the local header has the name 'a/y', expected 'a/x' as "
      "in the central directory [byte 0]");
  record.local_name = "a/xx";
  expect_corrupt(
      build_zip({record}),
      "m.pt: the local header of record 'a/x' has a name of 4 bytes, expected "
      "3 as in the central directory [byte 0]");
}

TEST(refuses_another_method_in_the_local_header) {
  std::string file = build_zip({{"a/x", "hello"}});
  file[8] = 8;
  expect_corrupt(
      file,
      "m.pt: the local header of record 'a/x' has compression method 8, "
      "expected 0 as in the central directory [byte 0]");
}

TEST(refuses_a_bad_local_header) {
  std::string file = build_zip({{"a/x", "hello"}});
  file[0] = 'Q';
  expect_corrupt(
      file,
      "m.pt: found 51 4b 03 04, expected the local header of record 'a/x' (50 "
      "4b 03 04) [byte 0]");
}

TEST(refuses_a_stored_record_of_two_sizes) {
  ZipRecord record{"a/x", "hello"};
  record.compressed_size = 4;
  record.central_size = 5;
  expect_corrupt(
      build_zip({record}),
      "m.pt: record 'a/x' is stored in 4 bytes, expected its size of 5 [byte "
      "38]");
}

TEST(refuses_data_that_reaches_into_the_next_record) {
  ZipRecord record{"a/x", "hello"};
  record.central_size = 6;
  expect_corrupt(
      build_zip({record, {"a/y", ""}}),
      "m.pt: the data of record 'a/x' reaches past byte 38, expected it to end "
      "in front of record 'a/y' [byte 0]");
  expect_corrupt(
      build_zip({record}),
      "m.pt: the data of record 'a/x' reaches past byte 38, expected it to end "
      "in front of the central directory [byte 0]");
}

TEST(refuses_two_records_at_one_place) {
  ZipRecord record{"a/y", "hello"};
  record.local_offset = 0;
  expect_corrupt(
      build_zip({{"a/x", "hello"}, record}),
      "m.pt: the local header of record 'a/x' reaches past byte 0, expected it "
      "to end in front of record 'a/y' [byte 0]");
}

TEST(refuses_a_local_header_outside_the_file) {
  ZipRecord record{"a/x", "hello"};
  record.local_offset = 5000;
  expect_corrupt(
      build_zip({record}),
      "m.pt: the local header of record 'a/x' reaches past byte 38, expected "
      "it to end in front of the central directory [byte 5000]");
}

TEST(refuses_an_extra_field_that_reaches_into_the_directory) {
  std::string file = build_zip({{"a/x", "hello"}});
  file[28] = 100;
  expect_corrupt(
      file,
      "m.pt: the local header of record 'a/x' reaches past byte 38, expected "
      "it to end in front of the central directory [byte 0]");
}

// Counts what is read and viewed of a file.
class CountingSource final : public ByteSource {
 public:
  explicit CountingSource(std::string bytes) : source_(std::move(bytes)) {}

  const std::string& path() const noexcept override {
    return source_.path();
  }
  uint64_t size_bytes() const noexcept override {
    return source_.size_bytes();
  }
  void read(uint64_t file_offset, std::span<std::byte> out) const override {
    ++read_count;
    source_.read(file_offset, out);
  }
  ByteView view(const ByteRange& range) const override {
    EXPECT(live_view_.expired());  // one at a time
    const auto keeper = std::make_shared<const int>(0);
    live_view_ = keeper;
    views.push_back(range);
    return {source_.view(range).bytes, keeper};
  }

  mutable size_t read_count = 0;
  mutable std::vector<ByteRange> views;

 private:
  MemorySource source_;
  mutable std::weak_ptr<const int> live_view_;
};

constexpr uint64_t kViewBytes = uint64_t{2} << 20;
// The end record, where a zip64 locator would be, and the directory (of at most
// 64 KiB).
constexpr size_t kDirectoryReads = 3;

// Records "a/00000", "a/00001", ... of `data_bytes` each, the first behind
// `padding_bytes` more.
std::vector<ZipRecord> many_records(
    size_t count,
    size_t data_bytes,
    size_t padding_bytes = 0) {
  std::vector<ZipRecord> records;
  for (size_t i = 0; i < count; ++i) {
    const std::string digits = std::to_string(100000 + i).substr(1);
    records.push_back({"a/" + digits, std::string(data_bytes, 'x')});
  }
  records.front().data.append(padding_bytes, 'x');
  return records;
}

TEST(views_local_headers_that_lie_close_together) {
  const size_t header_bytes = 30 + 7;
  const std::string file = build_zip(many_records(3000, 1000 - header_bytes));
  const CountingSource source(file);
  const ZipDirectory directory = ZipDirectory::read(source);
  for (size_t i = 0; i < 3000; ++i) {
    EXPECT_EQ(directory.entries()[i].data_range.begin, 1000 * i + header_bytes);
  }
  EXPECT_EQ(source.views.size(), 2U);
  EXPECT(source.views[0] == (ByteRange{0, kViewBytes}));
  EXPECT(source.views[1] == (ByteRange{kViewBytes, file.size()}));
  // The directory has 159,000 bytes.
  EXPECT_EQ(source.read_count, kDirectoryReads + 2);
}

TEST(reads_local_headers_that_lie_far_apart) {
  // 63 in a block, 64 of which would be viewed.
  const CountingSource source(build_zip(many_records(130, kViewBytes / 63)));
  const ZipDirectory directory = ZipDirectory::read(source);
  EXPECT_EQ(directory.entries().size(), 130U);
  EXPECT(source.views.empty());
  EXPECT_EQ(source.read_count, kDirectoryReads + 130);
}

TEST(views_no_block_for_its_last_few_headers) {
  // 40 records end the first block, 63 begin the second.
  const size_t record_bytes = 30 + 7 + 5;
  const CountingSource source(
      build_zip(many_records(103, 5, kViewBytes - 40 * record_bytes)));
  EXPECT_EQ(ZipDirectory::read(source).entries().size(), 103U);
  EXPECT(source.views.empty());
}

TEST(a_file_that_shrinks_between_two_views_is_an_error) {
  // A file on disk that is cut to its first block once that has been viewed.
  class ShrinkingFile final : public ByteSource {
   public:
    explicit ShrinkingFile(const std::string& path) : file_(path) {}
    const std::string& path() const noexcept override {
      return file_.path();
    }
    uint64_t size_bytes() const noexcept override {
      return file_.size_bytes();
    }
    void read(uint64_t file_offset, std::span<std::byte> out) const override {
      file_.read(file_offset, out);
    }
    ByteView view(const ByteRange& range) const override {
      ByteView view = file_.view(range);
      EXPECT_EQ(::truncate(path().c_str(), kViewBytes + 10), 0);
      return view;
    }

   private:
    os::File file_;
  };
  const testing::TemporaryFile path(0);
  const std::string bytes = build_zip(many_records(3000, 963));
  std::ofstream(path.path(), std::ios::binary) << bytes;
  EXPECT_THROWS(
      CheckpointError,
      path.path() + ": the file has shrunk from " +
          std::to_string(bytes.size()) + " bytes while it was read, expected " +
          std::to_string(bytes.size() - kViewBytes - 10) +
          " more [byte 2097162]",
      ZipDirectory::read(ShrinkingFile(path.path())));
}

TEST(local_headers_may_straddle_blocks_anywhere) {
  // Moves a header byte by byte across the end of a block.
  const size_t record_bytes = 30 + 7 + 5;
  for (size_t shift = 0; shift <= record_bytes; ++shift) {
    const size_t padding = kViewBytes - 100 * record_bytes - shift;
    const std::string file = build_zip(many_records(300, 5, padding));
    const CountingSource source(file);
    const ZipDirectory directory = ZipDirectory::read(source);
    for (size_t i = 1; i < 300; ++i) {
      EXPECT_EQ(
          directory.entries()[i].data_range.begin,
          padding + record_bytes * i + 37);
    }
    EXPECT_EQ(source.views.size(), 2U);
    const bool straddles = shift > 0 && shift < 37;
    EXPECT_EQ(source.read_count, kDirectoryReads + (straddles ? 1 : 0));
  }
}

TEST(headers_in_views_are_checked_as_those_read) {
  const size_t record_bytes = 30 + 7 + 5;
  const std::string file = build_zip(many_records(500, 5));
  const auto expect_with =
      [&](size_t record, size_t at, char byte, const std::string& message) {
        std::string bad = file;
        bad[record * record_bytes + at] = byte;
        const CountingSource source(bad);
        EXPECT_THROWS(CheckpointError, message, ZipDirectory::read(source));
        EXPECT_EQ(source.views.size(), 1U);
      };
  expect_with(
      300,
      0,
      'Q',
      "m.pt: found 51 4b 03 04, expected the local header of record 'a/00300' "
      "(50 4b 03 04) [byte 12600]");
  expect_with(
      300,
      30 + 6,
      '9',
      "m.pt: the local header has the name 'a/00309', expected 'a/00300' as in "
      "the central directory [byte 12600]");
  expect_with(
      300,
      28,
      6,
      "m.pt: the local header of record 'a/00300' reaches past byte 12642, "
      "expected it to end in front of record 'a/00301' [byte 12600]");
  expect_with(
      300,
      28,
      5,
      "m.pt: the data of record 'a/00300' reaches past byte 12642, expected it "
      "to end in front of record 'a/00301' [byte 12600]");
}

TEST(hostile_offsets_among_many_are_not_viewed) {
  std::vector<ZipRecord> records = many_records(500, 5);
  records[300].local_offset = 0xFFFFFFF0;
  expect_corrupt(
      build_zip(records),
      "m.pt: the local header of record 'a/00300' reaches past byte 21000, "
      "expected it to end in front of the central directory [byte "
      "4294967280]");
  // Backwards, and all in one place.
  std::string file = build_zip(many_records(500, 5));
  const size_t directory = 500 * 42;
  std::string offsets_reversed = file;
  for (size_t i = 0; i < 500; ++i) {
    offsets_reversed.replace(
        directory + i * 53 + 42,
        4,
        testing::little_endian((499 - i) * 42, 4));
  }
  expect_corrupt(
      offsets_reversed,
      "m.pt: the local header has the name 'a/00000', expected 'a/00499' as in "
      "the central directory [byte 0]");
  for (size_t i = 0; i < 500; ++i) {
    file.replace(directory + i * 53 + 42, 4, testing::little_endian(42, 4));
  }
  expect_corrupt(
      file,
      "m.pt: the local header of record 'a/00000' reaches past byte 42, "
      "expected it to end in front of record 'a/00001' [byte 42]");
}

TEST(many_records_may_be_listed_in_any_order) {
  const std::string file = build_zip(many_records(500, 5));
  std::string reversed = file.substr(0, 500 * 42);
  for (size_t i = 500; i-- > 0;) {
    reversed += file.substr(500 * 42 + i * 53, 53);
  }
  reversed += file.substr(500 * 42 + 500 * 53);
  const ZipDirectory directory = read(reversed);
  EXPECT_EQ(std::string(directory.entries()[0].name), "a/00499");
  for (size_t i = 0; i < 500; ++i) {
    EXPECT_EQ(directory.entries()[499 - i].data_range.begin, i * 42 + 37);
  }
}

TEST(escapes_names_in_messages) {
  expect_corrupt(
      build_zip({{"a\n\xff", "1"}, {"a\n\xff", "2"}}),
      "m.pt: record 'a\\x0a\\xff' is in the central directory twice, expected "
      "distinct names [byte 34]");
}

}  // namespace
}  // namespace ckpt_streamer::format
