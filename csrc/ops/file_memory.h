// The memory of storages that are cut from a mapped file.
#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>
#include <memory>

#include "os/mapped_file.h"

namespace ckpt_streamer::ops {

using FileShare = std::shared_ptr<const os::MappedFile>;

// The file's memory from this offset on; it holds a share of the file.
// REQUIRES: as os::MappedFile::at().
[[nodiscard]] c10::DataPtr file_memory(
    const FileShare& file,
    uint64_t file_offset);

// The file that this is memory of; null if file_memory() did not make it.
[[nodiscard]] FileShare file_of(const c10::DataPtr& memory);

}  // namespace ckpt_streamer::ops
