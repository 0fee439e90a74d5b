#include "format/checksums.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <exception>
#include <memory>
#include <span>
#include <string>

#include "base/crc32.h"
#include "base/error.h"
#include "format/text.h"
#include "format/zip_directory.h"

namespace ckpt_streamer::format {
namespace {

std::string crc_text(uint32_t crc) {
  std::array<std::byte, 4> bytes;
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = std::byte(crc >> (24 - 8 * i) & 0xFF);
  }
  std::string text = hex_bytes(bytes);
  std::erase(text, ' ');
  return "0x" + text;
}

// "record 'archive/data/0'". The index has no names; this is the only time that
// one is wanted.
std::string record_text(const ByteSource& source, const ByteRange& data_range) {
  try {
    const ZipDirectory directory = ZipDirectory::read(source);
    for (const ZipEntry& entry : directory.entries()) {
      if (entry.data_range == data_range) {
        return "record " + quoted(entry.name);
      }
    }
  } catch (const std::exception&) {
    // It was changed since it was opened, or there is no memory for it.
  }
  return "a record";
}

}  // namespace

void require_checksums(const CheckpointIndex& index) {
  for (const StorageRecord& storage : index.storages) {
    if (!storage.crc32.has_value() && !storage.file_range.empty()) {
      throw CheckpointError(
          ErrorKind::kUnsupported,
          index.files[storage.file_index].path,
          "has no checksums to verify; expected a zip archive of torch.save or "
          "torch.jit.save that was saved with them");
    }
  }
}

void verify_checksum(
    const StorageRecord& record,
    const ByteSource& source,
    uint64_t piece_bytes) {
  const ByteRange& range = record.file_range;
  const uint64_t buffer_bytes = std::min(piece_bytes, range.size_bytes());
  const auto buffer = std::make_unique_for_overwrite<std::byte[]>(buffer_bytes);
  uint32_t crc = 0;
  for (uint64_t position = range.begin; position < range.end;) {
    const std::span<std::byte> piece(
        buffer.get(),
        std::min(buffer_bytes, range.end - position));
    source.read(position, piece);
    crc = crc32(piece, crc);
    position += piece.size();
  }
  if (crc != *record.crc32) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        source.path(),
        record_text(source, range) + " has the CRC-32 " + crc_text(crc) +
            ", expected " + crc_text(*record.crc32) +
            " as the zip's directory says",
        range.begin);
  }
}

}  // namespace ckpt_streamer::format
