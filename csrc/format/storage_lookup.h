// What the storages of a pickle are: the one thing about tensors that differs
// between the containers that hold pickles (zip, legacy, TorchScript).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/byte_range.h"

namespace ckpt_streamer::format {

struct FoundStorage {
  // Equal numbers are the same storage: its tensors share memory. Small: tables
  // are as long as the largest.
  uint32_t number = 0;
  std::string_view name;  // for messages; lives as long as the lookup
  ByteRange file_range;   // absolute; lies inside the file
};

class StorageLookup {
 public:
  StorageLookup() = default;
  StorageLookup(const StorageLookup&) = delete;
  StorageLookup& operator=(const StorageLookup&) = delete;
  virtual ~StorageLookup() = default;

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

}  // namespace ckpt_streamer::format
