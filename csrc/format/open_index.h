// The way in: looks at a file's first bytes, picks the reader, and says in
// words what a file is that no reader takes.
#pragma once

#include "base/byte_source.h"
#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

// ENSURES: as read_torch_zip.
// THROWS: as read_torch_zip; besides Corrupt for an empty file, a truncated
// zip or bytes of no known kind, Unsupported for known kinds that are not
// read: legacy torch.save files, safetensors, GGUF, HDF5, .npy and .npz, gzip,
// tar, plain pickles and zip files of others.
[[nodiscard]] CheckpointIndex read_index(const ByteSource& source);

}  // namespace ckpt_streamer::format
