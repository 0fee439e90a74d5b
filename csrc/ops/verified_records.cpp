#include "ops/verified_records.h"

#include <algorithm>

#include "format/checksums.h"

namespace ckpt_streamer::ops {
namespace {

// Large beside a system call, small beside a processor's cache.
constexpr uint64_t kPieceBytes = 256 * 1024;

}  // namespace

VerifiedRecords::VerifiedRecords(
    const format::CheckpointIndex& index,
    const MappedFiles& files,
    uint64_t memory_limit_bytes)
    : index_(index),
      files_(files),
      piece_bytes_(std::min(kPieceBytes, memory_limit_bytes)),
      is_verified_(index.storages.size()) {
  format::require_checksums(index);
  for (const format::StorageRecord& record : index.read_records) {
    if (record.crc32.has_value()) {
      check_record(record);
    }
  }
}

void VerifiedRecords::check(uint32_t storage_index) {
  const std::lock_guard lock(mutex_);
  if (!is_verified_[storage_index]) {
    const format::StorageRecord& record = index_.storages[storage_index];
    if (!record.file_range.empty()) {
      check_record(record);
    }
    is_verified_[storage_index] = true;
  }
}

void VerifiedRecords::check_record(const format::StorageRecord& record) const {
  format::verify_checksum(record, files_.file(record.file_index), piece_bytes_);
}

}  // namespace ckpt_streamer::ops
