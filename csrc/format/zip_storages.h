// The storages of a zip archive: records named by a folder and a key.
#pragma once

#include <string>

#include "format/storage_lookup.h"
#include "format/zip_directory.h"

namespace ckpt_streamer::format {

class ZipStorages final : public StorageLookup {
 public:
  // `folder` with its slash: "archive/data/" for torch.save's data.pkl,
  // "archive/constants/" for TorchScript's constants.pkl. `file_path` is for
  // messages.
  // REQUIRES: `directory` outlives this.
  ZipStorages(
      const ZipDirectory& directory,
      std::string folder,
      std::string file_path);

  // Unsupported for a compressed record.
  [[nodiscard]] std::optional<FoundStorage> find(
      std::string_view key,
      std::string_view path) override;
  [[nodiscard]] std::string expected_text(std::string_view key) const override;

 private:
  const ZipEntry* find_entry(std::string_view key);

  const ZipDirectory& directory_;
  const std::string folder_;
  const std::string file_path_;
  size_t next_entry_ = 0;  // where the next key is looked for
};

}  // namespace ckpt_streamer::format
