// Where everything of a file will lie, fixed before its first byte is written:
// so the storages can be written in any order, each to its place.
//
// A storage's bytes stand between what the format has in front of them and what
// it has behind; what is in front of them all, and behind, is apart. All is
// known beforehand but for checksums. Immutable, hence thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "write/file_format.h"
#include "write/pickle_writer.h"
#include "write/plan.h"

namespace ckpt_streamer::write {

class FileLayout {
 public:
  FileLayout() = default;
  FileLayout(const FileLayout&) = delete;
  FileLayout& operator=(const FileLayout&) = delete;
  virtual ~FileLayout() = default;

  [[nodiscard]] virtual uint64_t size_bytes() const noexcept = 0;
  // The bytes in front of all storages, from the file's first byte on.
  [[nodiscard]] virtual const std::string& head() const noexcept = 0;
  // The offset in the file of a storage's first byte.
  [[nodiscard]] virtual uint64_t offset(uint32_t storage) const noexcept = 0;
  // The bytes that end where the storage begins, and those that begin where it
  // ends.
  [[nodiscard]] virtual std::string in_front(uint32_t storage) const = 0;
  [[nodiscard]] virtual std::string behind(uint32_t storage, uint32_t crc32)
      const = 0;
  // The bytes that the file ends with.
  [[nodiscard]] virtual std::string tail(
      std::span<const uint32_t> checksums) const = 0;
  // Whether the checksums are looked at.
  [[nodiscard]] virtual bool has_checksums() const noexcept = 0;
};

// Of a planned file. `path`: for errors.
// THROWS: CheckpointError as PickleWriter; InvalidArgument for a safetensors
// header that is larger than its readers take.
[[nodiscard]] std::unique_ptr<FileLayout> make_layout(
    const std::string& path,
    FileFormat format,
    const PlannedFile& file,
    Opaque opaque);

}  // namespace ckpt_streamer::write
