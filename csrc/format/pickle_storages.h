// The storages that a pickle refers to by persistent ids, as records of the
// index.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/byte_range.h"
#include "format/checkpoint_index.h"
#include "format/pickle_context.h"
#include "format/storage_lookup.h"

namespace ckpt_streamer::format {

// What a persistent id stands for: a storage in the index, or a part of it.
struct StoragePart {
  uint32_t index;                     // in CheckpointIndex::storages
  DType dtype;                        // as the persistent id says
  ByteRange byte_range;               // inside the storage
  std::string_view record_name = {};  // lives as long as the lookup
};

class PickleStorages {
 public:
  // REQUIRES: all outlive this.
  PickleStorages(
      const PickleContext& context,
      StorageLookup& lookup,
      CheckpointIndex& index)
      : context_(context), lookup_(lookup), index_(index) {}

  // Of a value that should be a persistent id; appends the storage to the index
  // if it is new. `file_offset` is that of the tensor that asks.
  // THROWS: CheckpointError, in the name of the tensor at context.path().
  StoragePart part_of(ValueId id, uint64_t file_offset);

 private:
  // A storage in the index, with the type that the first reference declared.
  struct KnownStorage {
    uint32_t index = kNoStorage;
    DType dtype = DType::kUInt8;
  };

  const PickleContext& context_;
  StorageLookup& lookup_;
  CheckpointIndex& index_;
  std::vector<KnownStorage> known_storages_;  // by FoundStorage::number
};

}  // namespace ckpt_streamer::format
