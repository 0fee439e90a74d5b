#include "ops/mapped_files.h"

#include <utility>

namespace ckpt_streamer::ops {

const ByteSource& MappedFiles::open(const std::string& path) {
  std::unique_ptr<os::File>& file = files_[path];
  if (file == nullptr) {
    file = std::make_unique<os::File>(path);
  }
  return *file;
}

void MappedFiles::map(std::span<const format::FileRecord> files) {
  decltype(files_) kept;
  std::unordered_map<std::string, std::shared_ptr<const os::MappedFile>> mapped;
  for (const format::FileRecord& file : files) {
    auto& mapping = mapped[file.path];
    if (mapping == nullptr) {
      std::unique_ptr<os::File>& opened = kept[file.path];
      opened = std::move(files_.at(file.path));
      mapping = std::make_shared<const os::MappedFile>(*opened);
    }
    mappings_.push_back(mapping);
    sources_.push_back(kept[file.path].get());
  }
  files_ = std::move(kept);
}

void MappedFiles::check_unchanged() const {
  for (const auto& [path, file] : files_) {
    file->check_unchanged();
  }
}

}  // namespace ckpt_streamer::ops
