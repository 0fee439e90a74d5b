#include "format/zip_directory.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>

#include "base/checked_math.h"
#include "base/error.h"
#include "format/little_endian.h"
#include "format/source_reader.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

// Signatures and fixed sizes of APPNOTE 4.3.7, 4.3.12, 4.3.14 to 4.3.16.
constexpr uint32_t kLocalHeaderSignature = 0x04034b50;
constexpr uint32_t kDirectoryHeaderSignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kZip64EndSignature = 0x06064b50;
constexpr uint32_t kZip64LocatorSignature = 0x07064b50;
constexpr uint64_t kLocalHeaderBytes = 30;
constexpr uint64_t kDirectoryHeaderBytes = 46;
constexpr uint64_t kEndBytes = 22;
constexpr uint64_t kZip64EndBytes = 56;
constexpr uint64_t kZip64LocatorBytes = 20;
constexpr uint64_t kLongestCommentBytes = 0xFFFF;

// Local headers are viewed block by block, not read one by one, from this many
// in a block on: a mean distance of 32 KiB, about as far as a disk reads ahead
// anyway. A block is what the kernel reads and maps as one, and no more than
// any memory limit lets a stream have.
constexpr uint64_t kViewBytes = uint64_t{2} << 20;
constexpr size_t kFewestViewedHeaders = 64;
constexpr uint64_t kNoHeader = ~uint64_t{0};
constexpr size_t kPrefetchedHeaders = 8;

// APPNOTE 4.5.3: the 64-bit values that replace fields of all ones.
constexpr uint16_t kZip64ExtraId = 0x0001;
constexpr uint64_t kAllOnes16 = 0xFFFF;
constexpr uint64_t kAllOnes32 = 0xFFFFFFFF;

// APPNOTE 4.4.4: encrypted, strong encryption, masked local headers.
constexpr unsigned kEncryptionFlags = 1U << 0 | 1U << 6 | 1U << 13;

[[noreturn]] void fail(
    const ByteSource& source,
    const std::string& what,
    uint64_t file_offset) {
  throw CheckpointError(ErrorKind::kCorrupt, source.path(), what, file_offset);
}

std::string hex_signature(const std::byte* bytes) {
  return hex_bytes({bytes, 4});
}

struct DirectoryLocation {
  ByteRange range;
  uint64_t entry_count = 0;
};

// The fields that the end record has in both widths.
struct EndFields {
  uint64_t disk = 0;
  uint64_t directory_disk = 0;
  uint64_t disk_entry_count = 0;
  uint64_t entry_count = 0;
  uint64_t directory_size_bytes = 0;
  uint64_t directory_begin = 0;
};

// APPNOTE 4.3.16. The record is the one whose comment reaches exactly to the
// end of the file; a look-alike inside the comment does not.
uint64_t find_end_record(
    const ByteSource& source,
    std::span<const std::byte> tail) {
  const uint64_t tail_begin = source.size_bytes() - tail.size();
  std::optional<uint64_t> look_alike;
  for (uint64_t i = tail.size() < kEndBytes ? 0 : tail.size() - kEndBytes + 1;
       i-- > 0;) {
    if (load_u32(&tail[i]) != kEndSignature) {
      continue;
    }
    if (i + kEndBytes + load_u16(&tail[i + 20]) == tail.size()) {
      return tail_begin + i;
    }
    look_alike = look_alike.value_or(i);
  }
  if (look_alike.has_value()) {
    fail(
        source,
        "the end of central directory record is followed by " +
            std::to_string(tail.size() - *look_alike - kEndBytes) +
            " bytes, expected a comment of " +
            std::to_string(load_u16(&tail[*look_alike + 20])),
        tail_begin + *look_alike);
  }
  throw CheckpointError(
      ErrorKind::kCorrupt,
      source.path(),
      "is truncated: no end of central directory record in its last " +
          std::to_string(tail.size()) + " bytes, expected a whole zip file");
}

// APPNOTE 4.3.14 and 4.3.15: the end record of zip64 is reached through a
// locator right in front of the plain one. nullopt when there is no locator.
std::optional<EndFields> read_zip64_end(
    const ByteSource& source,
    uint64_t end_offset,
    uint64_t& directory_limit) {
  if (end_offset < kZip64LocatorBytes) {
    return std::nullopt;
  }
  const uint64_t locator_offset = end_offset - kZip64LocatorBytes;
  std::byte locator[kZip64LocatorBytes];
  source.read(locator_offset, locator);
  if (load_u32(locator) != kZip64LocatorSignature) {
    return std::nullopt;
  }
  const uint64_t record_offset = load_u64(locator + 8);
  if (locator_offset < kZip64EndBytes ||
      record_offset > locator_offset - kZip64EndBytes) {
    fail(
        source,
        "the zip64 locator points at byte " + std::to_string(record_offset) +
            ", expected a record of " + std::to_string(kZip64EndBytes) +
            " bytes in front of the locator",
        locator_offset);
  }
  std::byte record[kZip64EndBytes];
  source.read(record_offset, record);
  if (load_u32(record) != kZip64EndSignature) {
    fail(
        source,
        "found " + hex_signature(record) +
            ", expected the zip64 end of central directory record "
            "(50 4b 06 06)",
        record_offset);
  }
  directory_limit = record_offset;
  return EndFields{
      load_u32(record + 16),
      load_u32(record + 20),
      load_u64(record + 24),
      load_u64(record + 32),
      load_u64(record + 40),
      load_u64(record + 48)};
}

void expect_same_field(
    const ByteSource& source,
    const char* field,
    uint64_t plain,
    uint64_t all_ones,
    uint64_t zip64,
    uint64_t end_offset) {
  if (plain != all_ones && plain != zip64) {
    fail(
        source,
        std::string("the end of central directory record has ") + field + " " +
            std::to_string(plain) + ", expected " + std::to_string(zip64) +
            " as in its zip64 record",
        end_offset);
  }
}

DirectoryLocation locate_directory(const ByteSource& source) {
  const uint64_t tail_bytes =
      std::min(source.size_bytes(), kEndBytes + kLongestCommentBytes);
  std::vector<std::byte> tail(tail_bytes);
  source.read(source.size_bytes() - tail_bytes, tail);
  const uint64_t end_offset = find_end_record(source, tail);
  const std::byte* end = &tail[end_offset - (source.size_bytes() - tail_bytes)];

  EndFields fields{
      load_u16(end + 4),
      load_u16(end + 6),
      load_u16(end + 8),
      load_u16(end + 10),
      load_u32(end + 12),
      load_u32(end + 16)};
  uint64_t directory_limit = end_offset;
  if (const auto zip64 = read_zip64_end(source, end_offset, directory_limit)) {
    // Two readers that trust different records must not see different files.
    expect_same_field(
        source,
        "entry count",
        fields.entry_count,
        kAllOnes16,
        zip64->entry_count,
        end_offset);
    expect_same_field(
        source,
        "directory size",
        fields.directory_size_bytes,
        kAllOnes32,
        zip64->directory_size_bytes,
        end_offset);
    expect_same_field(
        source,
        "directory offset",
        fields.directory_begin,
        kAllOnes32,
        zip64->directory_begin,
        end_offset);
    fields = *zip64;
  }
  if (fields.disk != 0 || fields.directory_disk != 0 ||
      fields.disk_entry_count != fields.entry_count) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        source.path(),
        "is volume " + std::to_string(fields.disk) +
            " of a multi-volume zip, expected a zip in one file",
        end_offset);
  }
  const auto directory_end =
      checked_add(fields.directory_begin, fields.directory_size_bytes);
  if (!directory_end.has_value() || *directory_end > directory_limit) {
    fail(
        source,
        "the central directory has " +
            std::to_string(fields.directory_size_bytes) + " bytes from byte " +
            std::to_string(fields.directory_begin) +
            ", expected it to end in front of its end record at byte " +
            std::to_string(directory_limit),
        end_offset);
  }
  if (fields.entry_count >
      fields.directory_size_bytes / kDirectoryHeaderBytes) {
    fail(
        source,
        "the central directory has " + std::to_string(fields.entry_count) +
            " entries in " + std::to_string(fields.directory_size_bytes) +
            " bytes, expected at least " +
            std::to_string(kDirectoryHeaderBytes) + " bytes an entry",
        end_offset);
  }
  // The name index counts in 32 bits.
  if (fields.entry_count >= kAllOnes32) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        source.path(),
        "has " + std::to_string(fields.entry_count) +
            " zip entries, expected fewer than 2^32",
        end_offset);
  }
  return {{fields.directory_begin, *directory_end}, fields.entry_count};
}

// Of a record's bytes, as the central directory has them.
struct RecordSizes {
  uint64_t compressed_bytes = 0;
  uint64_t uncompressed_bytes = 0;
};

// Replaces the fields of all ones by their values in the zip64 extra field,
// which holds only those, in this order (APPNOTE 4.5.3).
void apply_zip64_extra(
    const ByteSource& source,
    std::span<const std::byte> extra,
    uint64_t header_offset,
    ZipEntry& entry,
    RecordSizes& sizes) {
  uint64_t* const fields[] = {
      &sizes.uncompressed_bytes,
      &sizes.compressed_bytes,
      &entry.local_header_offset};
  if (std::none_of(std::begin(fields), std::end(fields), [](uint64_t* field) {
        return *field == kAllOnes32;
      })) {
    return;
  }
  while (extra.size() >= 4) {
    const uint16_t id = load_u16(extra.data());
    const size_t body_bytes = load_u16(extra.data() + 2);
    if (body_bytes > extra.size() - 4) {
      break;
    }
    std::span<const std::byte> body = extra.subspan(4, body_bytes);
    extra = extra.subspan(4 + body_bytes);
    if (id != kZip64ExtraId) {
      continue;
    }
    for (uint64_t* field : fields) {
      if (*field != kAllOnes32) {
        continue;
      }
      if (body.size() < 8) {
        fail(
            source,
            "the zip64 extra field of record " + quoted(entry.name) + " has " +
                std::to_string(body_bytes) +
                " bytes, expected 8 for each size or offset of all ones",
            header_offset);
      }
      *field = load_u64(body.data());
      body = body.subspan(8);
    }
    return;
  }
  // Without the extra field the value is what it says: 4 GiB - 1.
}

void check_entry(
    const ByteSource& source,
    const ZipEntry& entry,
    const RecordSizes& sizes,
    uint64_t header_offset) {
  if ((entry.flags & kEncryptionFlags) != 0) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        source.path(),
        "record " + quoted(entry.name) + " is encrypted, expected plain",
        header_offset);
  }
  if (entry.is_stored() && sizes.compressed_bytes != sizes.uncompressed_bytes) {
    fail(
        source,
        "record " + quoted(entry.name) + " is stored in " +
            std::to_string(sizes.compressed_bytes) +
            " bytes, expected its size of " +
            std::to_string(sizes.uncompressed_bytes),
        header_offset);
  }
}

// The bytes of local headers, asked for in ascending order. A system call for
// each would be most of the time that opening takes where they lie close
// together; bringing in what is between them would be where they do not.
class HeaderBytes {
 public:
  explicit HeaderBytes(const ByteSource& source) : source_(source) {}

  // The kFewestViewedHeaders headers that come next begin up to here.
  void expect_until(uint64_t file_offset) noexcept {
    expected_until_ = file_offset;
  }

  // Lets the processor fetch what is asked for later.
  void prefetch(uint64_t file_offset) const noexcept {
    if (view_range_.begin <= file_offset && file_offset < view_range_.end) {
      __builtin_prefetch(
          view_.bytes.data() + (file_offset - view_range_.begin));
    }
  }

  // Valid until the next call.
  // REQUIRES: the range is inside the source.
  const std::byte* at(const ByteRange& range) {
    if (!view_range_.contains(range)) {
      const ByteRange block = intersect(
          round_outward({range.begin, range.begin + 1}, kViewBytes),
          {0, source_.size_bytes()});
      if (!block.contains(range) || expected_until_ >= block.end) {
        buffer_.resize(range.size_bytes());
        source_.read(range.begin, buffer_);
        return buffer_.data();
      }
      view_ = {};  // at no time two
      view_ = source_.view(block);
      view_range_ = block;
    }
    return view_.bytes.data() + (range.begin - view_range_.begin);
  }

 private:
  const ByteSource& source_;
  uint64_t expected_until_ = kNoHeader;
  ByteView view_;
  ByteRange view_range_;
  std::vector<std::byte> buffer_;
};

// Where a record has to end, and the record that begins there; none where the
// central directory does.
struct RecordLimit {
  uint64_t file_offset = 0;
  const ZipEntry* successor = nullptr;
};

// APPNOTE 4.3.7: a record's bytes follow its local header, whose extra field
// may differ in length from the central one (torch pads there).
ByteRange locate_data(
    const ByteSource& source,
    HeaderBytes& headers,
    const ZipEntry& entry,
    const RecordLimit& limit) {
  const uint64_t offset = entry.local_header_offset;
  const auto fail_overlap = [&](const std::string& part) {
    fail(
        source,
        "the " + part + " of record " + quoted(entry.name) +
            " reaches past byte " + std::to_string(limit.file_offset) +
            ", expected it to end in front of " +
            (limit.successor == nullptr
                 ? "the central directory"
                 : "record " + quoted(limit.successor->name)),
        offset);
  };
  const uint64_t fixed_bytes = kLocalHeaderBytes + entry.name.size();
  if (offset > limit.file_offset || fixed_bytes > limit.file_offset - offset) {
    fail_overlap("local header");
  }
  const std::byte* const header = headers.at({offset, offset + fixed_bytes});
  if (load_u32(header) != kLocalHeaderSignature) {
    fail(
        source,
        "found " + hex_signature(header) +
            ", expected the local header of record " + quoted(entry.name) +
            " (50 4b 03 04)",
        offset);
  }
  const uint64_t name_bytes = load_u16(header + 26);
  const uint64_t extra_bytes = load_u16(header + 28);
  if (name_bytes != entry.name.size()) {
    fail(
        source,
        "the local header of record " + quoted(entry.name) + " has a name of " +
            std::to_string(name_bytes) + " bytes, expected " +
            std::to_string(entry.name.size()) + " as in the central directory",
        offset);
  }
  const std::string_view local_name{
      reinterpret_cast<const char*>(header) + kLocalHeaderBytes,
      name_bytes};
  if (local_name != entry.name) {
    fail(
        source,
        "the local header has the name " + quoted(local_name) + ", expected " +
            quoted(entry.name) + " as in the central directory",
        offset);
  }
  if (load_u16(header + 8) != entry.method) {
    fail(
        source,
        "the local header of record " + quoted(entry.name) +
            " has compression method " + std::to_string(load_u16(header + 8)) +
            ", expected " + std::to_string(entry.method) +
            " as in the central directory",
        offset);
  }
  const uint64_t header_bytes = fixed_bytes + extra_bytes;
  if (header_bytes > limit.file_offset - offset) {
    fail_overlap("local header");
  }
  const uint64_t data_begin = offset + header_bytes;
  const uint64_t data_bytes = entry.data_range.size_bytes();
  if (data_bytes > limit.file_offset - data_begin) {
    fail_overlap("data");
  }
  return {data_begin, data_begin + data_bytes};
}

}  // namespace

ZipDirectory ZipDirectory::read(const ByteSource& source) {
  const DirectoryLocation location = locate_directory(source);
  ZipDirectory directory;
  directory.parse_entries(source, location.range, location.entry_count);

  std::vector<std::string_view> names;
  names.reserve(directory.entries_.size());
  for (const ZipEntry& entry : directory.entries_) {
    names.push_back(entry.name);
    directory.has_checksums_ |= entry.crc32 != 0;
  }
  directory.index_ = NameIndex(std::move(names));
  if (const auto& duplicate = directory.index_.duplicate()) {
    fail(
        source,
        "record " + quoted(directory.entries_[duplicate->first].name) +
            " is in the central directory twice, expected distinct names",
        directory.entries_[duplicate->second].local_header_offset);
  }
  directory.resolve_data_ranges(source, location.range.begin);
  return directory;
}

const ZipEntry* ZipDirectory::find(std::string_view name) const noexcept {
  const auto position = index_.find(name);
  return position.has_value() ? &entries_[*position] : nullptr;
}

std::optional<uint32_t> ZipDirectory::checksum_of(
    const ZipEntry& entry) const noexcept {
  return has_checksums_ && entry.is_stored() ? std::optional(entry.crc32)
                                             : std::nullopt;
}

void ZipDirectory::parse_entries(
    const ByteSource& source,
    const ByteRange& directory_range,
    uint64_t entry_count) {
  const uint64_t directory_bytes = directory_range.size_bytes();
  // More than enough, whatever the headers say; only what names fill is used.
  names_ = std::make_unique_for_overwrite<char[]>(directory_bytes);
  char* names_end = names_.get();
  entries_.reserve(entry_count);
  SourceReader reader(source, directory_range);
  while (entries_.size() < entry_count) {
    const uint64_t header_offset = reader.file_offset();
    const uint64_t remaining_bytes = reader.remaining_bytes();
    if (remaining_bytes < kDirectoryHeaderBytes) {
      fail(
          source,
          "the central directory ends after " +
              std::to_string(entries_.size()) + " entries, expected " +
              std::to_string(entry_count),
          header_offset);
    }
    const std::byte* const header = reader.take(kDirectoryHeaderBytes);
    // APPNOTE 4.3.12.
    if (load_u32(header) != kDirectoryHeaderSignature) {
      fail(
          source,
          "found " + hex_signature(header) +
              ", expected a central directory header (50 4b 01 02)",
          header_offset);
    }
    const uint64_t name_bytes = load_u16(header + 28);
    const uint64_t extra_bytes = load_u16(header + 30);
    const uint64_t variable_bytes =
        name_bytes + extra_bytes + load_u16(header + 32);
    if (variable_bytes > reader.remaining_bytes()) {
      fail(
          source,
          "a central directory header has " +
              std::to_string(kDirectoryHeaderBytes + variable_bytes) +
              " bytes, expected at most the remaining " +
              std::to_string(remaining_bytes),
          header_offset);
    }
    ZipEntry entry;
    entry.flags = load_u16(header + 8);
    entry.method = load_u16(header + 10);
    entry.crc32 = load_u32(header + 16);
    RecordSizes sizes{load_u32(header + 20), load_u32(header + 24)};
    entry.local_header_offset = load_u32(header + 42);
    const std::byte* const name = reader.take(variable_bytes);
    entry.name = {names_end, name_bytes};
    names_end =
        std::copy_n(reinterpret_cast<const char*>(name), name_bytes, names_end);
    apply_zip64_extra(
        source,
        {name + name_bytes, extra_bytes},
        header_offset,
        entry,
        sizes);
    check_entry(source, entry, sizes, header_offset);
    entry.data_range = {0, sizes.compressed_bytes};  // moved when it is found
    entries_.push_back(entry);
  }
  if (reader.remaining_bytes() != 0) {
    fail(
        source,
        "the central directory has " +
            std::to_string(reader.remaining_bytes()) +
            " bytes after its last entry, expected none",
        reader.file_offset());
  }
}

void ZipDirectory::resolve_data_ranges(
    const ByteSource& source,
    uint64_t directory_begin) {
  std::vector<uint32_t> ascending(entries_.size());
  std::iota(ascending.begin(), ascending.end(), 0U);
  const auto is_before = [&](uint32_t left, uint32_t right) {
    return entries_[left].local_header_offset <
           entries_[right].local_header_offset;
  };
  if (!std::is_sorted(ascending.begin(), ascending.end(), is_before)) {
    std::sort(ascending.begin(), ascending.end(), is_before);
  }
  const auto offset_of = [&](size_t i) {
    return entries_[ascending[i]].local_header_offset;
  };

  HeaderBytes headers(source);
  for (size_t i = 0; i < ascending.size(); ++i) {
    // What the record may not reach into: its successor or the directory.
    RecordLimit limit{directory_begin, nullptr};
    if (i + 1 < ascending.size() && offset_of(i + 1) < directory_begin) {
      limit = {offset_of(i + 1), &entries_[ascending[i + 1]]};
    }
    const size_t last_of_many = i + kFewestViewedHeaders - 1;
    headers.expect_until(
        last_of_many < ascending.size() ? offset_of(last_of_many) : kNoHeader);
    if (i + kPrefetchedHeaders < ascending.size()) {
      headers.prefetch(offset_of(i + kPrefetchedHeaders));
    }
    ZipEntry& entry = entries_[ascending[i]];
    entry.data_range = locate_data(source, headers, entry, limit);
  }
}

}  // namespace ckpt_streamer::format
