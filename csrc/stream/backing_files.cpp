#include "stream/backing_files.h"

#include <algorithm>

namespace ckpt_streamer::stream {
namespace {

// Files held open; the windows of a stream go through them one by one.
constexpr size_t kMostFiles = 4;

}  // namespace

std::shared_ptr<const os::BackingFile> BackingFiles::file_at(uint64_t address) {
  const auto known =
      std::find_if(files_.begin(), files_.end(), [&](const auto& file) {
        return file->addresses().contains({address, address + 1});
      });
  if (known != files_.end()) {
    return *known;
  }
  std::shared_ptr<const os::BackingFile> file =
      os::BackingFile::behind(address);
  if (file != nullptr) {
    if (files_.size() == kMostFiles) {
      files_.erase(files_.begin());
    }
    files_.push_back(file);
  }
  return file;
}

}  // namespace ckpt_streamer::stream
