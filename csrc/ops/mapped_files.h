// The files of a checkpoint: opened for its readers, then mapped.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/source_opener.h"
#include "format/checkpoint_index.h"
#include "os/file.h"
#include "os/mapped_file.h"

namespace ckpt_streamer::ops {

class MappedFiles final : public SourceOpener {
 public:
  [[nodiscard]] const ByteSource& open(const std::string& path) override;
  [[nodiscard]] PathKind kind(const std::string& path) const override {
    return os::path_kind(path);
  }

  // Maps the files, each under its position, and closes those that were opened
  // besides.
  // REQUIRES: each was opened here.
  // THROWS: CheckpointError as os::MappedFile.
  void map(std::span<const format::FileRecord> files);

  // REQUIRES: file_index is a position in what map() was given.
  [[nodiscard]] const std::shared_ptr<const os::MappedFile>& mapping(
      uint32_t file_index) const noexcept {
    return mappings_[file_index];
  }

  // REQUIRES: as mapping(). Lives as long as this.
  [[nodiscard]] const os::File& file(uint32_t file_index) const noexcept {
    return *sources_[file_index];
  }

  // THROWS: CheckpointError as os::File::check_unchanged().
  void check_unchanged() const;

 private:
  std::unordered_map<std::string, std::unique_ptr<os::File>> files_;  // by path
  std::vector<std::shared_ptr<const os::MappedFile>> mappings_;
  std::vector<const os::File*> sources_;  // by position, as mappings_
};

}  // namespace ckpt_streamer::ops
