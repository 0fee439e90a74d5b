// What the storages of a pickle are: the one thing about tensors that differs
// between the containers that hold pickles (zip, legacy, TorchScript).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/byte_range.h"
#include "format/pickle_machine.h"

namespace ckpt_streamer::format {

// The parts of a persistent id that say which storage it stands for.
struct StorageId {
  ValueId type = kNoValue;   // a global
  ValueId key = kNoValue;    // a string or an int
  ValueId count = kNoValue;  // in elements of the type
};

struct FoundStorage {
  // Equal numbers are the same storage: its tensors share memory. Small: tables
  // are as long as the largest.
  uint32_t number = 0;
  std::string_view name;  // for messages; lives as long as the lookup
  ByteRange file_range;   // absolute; lies inside the file
  // The part of it that the key stands for; all of it but for views of storages
  // (torch_legacy.h). Inside file_range.
  ByteRange view_range;
  // Of the bytes of file_range; none where the file keeps none.
  std::optional<uint32_t> crc32 = {};
};

class StorageLookup {
 public:
  StorageLookup() = default;
  StorageLookup(const StorageLookup&) = delete;
  StorageLookup& operator=(const StorageLookup&) = delete;
  virtual ~StorageLookup() = default;

  // What a persistent id, a tuple of `parts`, says; nullopt when it is not of
  // the form that id_form() tells.
  [[nodiscard]] virtual std::optional<StorageId> parse(
      const PickleTree& tree,
      std::span<const ValueId> parts) const;
  [[nodiscard]] virtual const char* id_form() const noexcept {
    return "('storage', type, key, location, count)";
  }

  // The storage that persistent ids call `key`; nullopt when there is none.
  // `path` names the tensor that asks, for messages.
  // THROWS: CheckpointError Unsupported for one that cannot be mapped.
  [[nodiscard]] virtual std::optional<FoundStorage> find(
      std::string_view key,
      std::string_view path) = 0;

  // What should have been there: "a record 'archive/data/9'".
  [[nodiscard]] virtual std::string expected_text(
      std::string_view key) const = 0;
};

// serialization.py, _save's persistent_id:
// ("storage", storage_type, storage_key, location, storage_numel).
inline std::optional<StorageId> StorageLookup::parse(
    const PickleTree& tree,
    std::span<const ValueId> parts) const {
  if (parts.size() != 5 || tree.kind(parts[0]) != ValueKind::kString ||
      tree.text(parts[0]) != "storage" ||
      tree.kind(parts[2]) != ValueKind::kString) {
    return std::nullopt;
  }
  return StorageId{parts[1], parts[2], parts[4]};
}

}  // namespace ckpt_streamer::format
