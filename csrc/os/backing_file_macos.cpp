#include "os/backing_file.h"

#include <unistd.h>

namespace ckpt_streamer::os {

std::shared_ptr<const BackingFile> BackingFile::behind(uint64_t) noexcept {
  return nullptr;
}

BackingFile::~BackingFile() {
  ::close(descriptor_);
}

bool BackingFile::shows_cached_pages() const noexcept {
  return false;
}

}  // namespace ckpt_streamer::os
