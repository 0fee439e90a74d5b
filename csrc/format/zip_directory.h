// The central directory of a zip file: which records it has and where their
// bytes are.
//
// Reads zip64, data descriptors, archive comments and any compression method
// (records are located, not unpacked). Does not read encrypted, multi-volume
// or prepended (self-extracting) archives. APPNOTE is PKWARE's .ZIP File
// Format Specification 6.3.10. Safe to share between threads once built.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/byte_range.h"
#include "base/byte_source.h"
#include "format/name_index.h"

namespace ckpt_streamer::format {

// APPNOTE 4.4.5.
inline constexpr uint16_t kZipMethodStored = 0;

struct ZipEntry {
  std::string_view name;  // owned by the ZipDirectory
  uint64_t local_header_offset = 0;
  ByteRange data_range;  // absolute, of the bytes as stored in the file
  uint32_t crc32 = 0;    // of the uncompressed bytes; not verified here
  uint16_t method = 0;
  uint16_t flags = 0;

  [[nodiscard]] bool is_stored() const noexcept {
    return method == kZipMethodStored;
  }
};

class ZipDirectory {
 public:
  // ENSURES: names are distinct; data ranges lie in front of the central
  // directory and do not overlap; a stored entry has equal sizes.
  // THROWS: CheckpointError Corrupt when the file is truncated or its headers
  // contradict each other, Unsupported for encrypted or multi-volume archives.
  // Cost: reads of the directory from front to end, and of the local headers in
  // ascending order: one small read for each, or one view of 2 MiB at a time
  // where many of them lie in it; O(entries) memory, checked against the file's
  // size.
  [[nodiscard]] static ZipDirectory read(const ByteSource& source);

  // In the order of the central directory.
  [[nodiscard]] std::span<const ZipEntry> entries() const noexcept {
    return entries_;
  }

  // nullptr when there is no record of exactly that name. Lives as long as the
  // directory.
  [[nodiscard]] const ZipEntry* find(std::string_view name) const noexcept;

  // The CRC-32 of the entry's bytes as they are in the file. None if they are
  // compressed, and none in an archive where all are 0: torch.save writes so
  // with torch.serialization.set_crc32_options(False).
  // REQUIRES: the entry is one of this directory.
  [[nodiscard]] std::optional<uint32_t> checksum_of(
      const ZipEntry& entry) const noexcept;

 private:
  ZipDirectory() = default;

  void parse_entries(
      const ByteSource& source,
      const ByteRange& directory_range,
      uint64_t entry_count);
  void resolve_data_ranges(const ByteSource& source, uint64_t directory_begin);

  std::unique_ptr<char[]> names_;  // of the entries, one behind the other
  std::vector<ZipEntry> entries_;
  NameIndex index_;  // of the names
  bool has_checksums_ = false;
};

}  // namespace ckpt_streamer::format
