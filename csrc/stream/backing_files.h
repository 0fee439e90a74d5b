// The files behind mappings, found by address; a few are held open.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "os/backing_file.h"

namespace ckpt_streamer::stream {

// Not thread-safe.
class BackingFiles {
 public:
  // Null where it cannot be had: see os::BackingFile::behind().
  // THROWS: std::bad_alloc.
  [[nodiscard]] std::shared_ptr<const os::BackingFile> file_at(
      uint64_t address);

 private:
  std::vector<std::shared_ptr<const os::BackingFile>> files_;  // the last ones
};

}  // namespace ckpt_streamer::stream
