// Holds records against the CRC-32s that their file keeps of them: zip archives
// do, no other format that is read here does.
#pragma once

#include <cstdint>

#include "base/byte_source.h"
#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

// THROWS: CheckpointError Unsupported, which names the file, when a storage
// with bytes has no CRC-32 to be held against.
void require_checksums(const CheckpointIndex& index);

// Reads the record's bytes, at most `piece_bytes` at once.
// REQUIRES: the record has a CRC-32; piece_bytes > 0.
// THROWS: CheckpointError Corrupt when the bytes have another one, which names
// the record as the directory of the zip archive does that the source is.
void verify_checksum(
    const StorageRecord& record,
    const ByteSource& source,
    uint64_t piece_bytes);

}  // namespace ckpt_streamer::format
