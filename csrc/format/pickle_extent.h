// Where a pickle ends that lies inside a larger file: a scan of its opcodes
// that builds nothing.
#pragma once

#include <cstdint>

#include "base/byte_source.h"
#include "format/pickle_machine.h"

namespace ckpt_streamer::format {

// The file offset behind the STOP of the pickle that begins at
// origin.file_offset. That it is a pickle at all, PickleTree::load tells.
// THROWS: CheckpointError Corrupt for a byte that is no opcode and for a file
// that ends in front of the STOP, Unsupported for kPickleLimitBytes or more.
// Cost: O(size of the pickle) time, 64 KiB of memory; the arguments of opcodes
// are passed over, not read.
[[nodiscard]] uint64_t find_pickle_end(
    const ByteSource& source,
    const PickleOrigin& origin);

}  // namespace ckpt_streamer::format
