#include "format/zip_storages.h"

#include <utility>

#include "base/error.h"
#include "format/text.h"

namespace ckpt_streamer::format {

ZipStorages::ZipStorages(
    const ZipDirectory& directory,
    std::string folder,
    std::string file_path)
    : directory_(directory),
      folder_(std::move(folder)),
      file_path_(std::move(file_path)) {}

std::optional<FoundStorage> ZipStorages::find(
    std::string_view key,
    std::string_view path) {
  const ZipEntry* entry = find_entry(key);
  if (entry == nullptr) {
    return std::nullopt;
  }
  if (!entry->is_stored()) {
    throw CheckpointError(
        ErrorKind::kUnsupported,
        file_path_,
        "record " + quoted(entry->name) + " of tensor " + quoted(path) +
            " is compressed (method " + std::to_string(entry->method) +
            "), expected stored",
        entry->local_header_offset);
  }
  const auto number = entry - directory_.entries().data();
  return FoundStorage{
      static_cast<uint32_t>(number),
      entry->name,
      entry->data_range,
      entry->data_range,
      directory_.checksum_of(*entry)};
}

std::string ZipStorages::expected_text(std::string_view key) const {
  return "a record " + quoted(folder_ + std::string(key));
}

// Keys come in the order of their records, mostly: torch.save numbers storages
// as the pickle meets them and writes them in that order.
const ZipEntry* ZipStorages::find_entry(std::string_view key) {
  const std::span<const ZipEntry> entries = directory_.entries();
  if (next_entry_ < entries.size()) {
    const std::string_view name = entries[next_entry_].name;
    if (name.size() == folder_.size() + key.size() &&
        name.starts_with(folder_) && name.ends_with(key)) {
      return &entries[next_entry_++];
    }
  }
  const ZipEntry* entry = directory_.find(folder_ + std::string(key));
  if (entry != nullptr) {
    next_entry_ = static_cast<size_t>(entry - entries.data()) + 1;
  }
  return entry;
}

}  // namespace ckpt_streamer::format
