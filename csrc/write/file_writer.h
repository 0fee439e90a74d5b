// Writes one laid-out file as its bytes come. Holds one buffer of 1 MiB, and a
// few bytes for each storage. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/byte_sink.h"
#include "write/file_layout.h"

namespace ckpt_streamer::write {

class FileWriter {
 public:
  // REQUIRES: both outlive this; `sizes`: of the layout's storages, in bytes.
  FileWriter(
      const FileLayout& layout,
      std::vector<uint64_t> sizes,
      ByteSink& sink);

  // The next bytes of a storage. Storages may come in any order, also by turns.
  // REQUIRES: no more than the storage has left.
  // THROWS: as ByteSink::write().
  void append(uint32_t storage, std::span<const std::byte> bytes);

  [[nodiscard]] uint64_t written_bytes(uint32_t storage) const noexcept {
    return written_bytes_[storage];
  }
  // Writes what the format has beside the storages, and the buffer.
  // REQUIRES: all storages have all of their bytes. Called once.
  void finish();

 private:
  void put(uint64_t file_offset, std::span<const std::byte> bytes);
  void put(uint64_t file_offset, const std::string& bytes) {
    put(file_offset, std::as_bytes(std::span(bytes)));
  }
  void begin_storage(uint32_t storage);
  void end_storage(uint32_t storage);
  void flush();

  const FileLayout& layout_;
  ByteSink& sink_;
  std::vector<uint64_t> sizes_;
  std::vector<uint64_t> written_bytes_;  // by storage
  std::vector<uint32_t> checksums_;      // likewise; of what was written
  std::unique_ptr<std::byte[]> buffer_;
  uint64_t buffer_offset_ = 0;  // in the file
  size_t buffer_size_ = 0;
};

}  // namespace ckpt_streamer::write
