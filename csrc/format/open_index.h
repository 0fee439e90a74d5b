// The way in: looks at a file's first bytes, picks the reader, and says in
// words what a file is that no reader takes.
#pragma once

#include "base/byte_source.h"
#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

// ENSURES: as the reader that fits; the file is the only one of index.files.
// THROWS: as read_torch_zip, read_torch_legacy and read_safetensors; besides
// Corrupt for an empty file, a truncated zip or bytes of no known kind,
// Unsupported for known kinds that are not read (see known_formats.h) and for
// the index of a sharded checkpoint (see checkpoint_files.h).
[[nodiscard]] CheckpointIndex read_index(const ByteSource& source);

}  // namespace ckpt_streamer::format
