// The records of a checkpoint, each held against its checksum once: before
// anybody sees what is in it.
//
// Thread-safe; reads through the files' descriptors, so that no page of a
// mapping becomes resident.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "format/checkpoint_index.h"
#include "ops/mapped_files.h"

namespace ckpt_streamer::ops {

class VerifiedRecords {
 public:
  // Checks the records that the index was read from.
  // REQUIRES: index and files outlive this; the files are mapped.
  // THROWS: CheckpointError Unsupported when there is a storage without a
  // checksum, Corrupt when a record is not what its checksum says.
  VerifiedRecords(
      const format::CheckpointIndex& index,
      const MappedFiles& files,
      uint64_t memory_limit_bytes);

  // THROWS: CheckpointError Corrupt when the storage's bytes are not what its
  // checksum says; each time it is asked.
  void check(uint32_t storage_index);

 private:
  void check_record(const format::StorageRecord& record) const;

  const format::CheckpointIndex& index_;
  const MappedFiles& files_;
  const uint64_t piece_bytes_;
  std::mutex mutex_;
  std::vector<bool> is_verified_;  // by storage
};

}  // namespace ckpt_streamer::ops
