// A checkpoint by its path: one file, or several that make one stream.
#pragma once

#include <span>
#include <string>

#include "base/source_opener.h"
#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

// A checkpoint file, or the index of a sharded one (see shard_index.h), whose
// shards are looked for in the directory of `path` itself, not of what a
// symbolic link there points to. Found by content, not by name.
//
// ENSURES: as read_index for each file; index.files are those with tensors, in
// the order of the stream. Every tensor that the index of shards names is in
// the shard that it says and in no other; a shard may hold more than it says.
// THROWS: as read_index and read_shard_index; Corrupt for a tensor in another
// shard or in none; Unsupported for a URL and for the directory of another kind
// of checkpoint, InvalidArgument for any other directory. Each names its file.
// Cost: that of the files, and O(tensors) for the index.
[[nodiscard]] CheckpointIndex read_checkpoint(
    const std::string& path,
    SourceOpener& opener);

// Checkpoint files as one stream, in the order given. Names may repeat.
// THROWS: as above; InvalidArgument for no paths, Unsupported for an index of
// shards among several paths.
[[nodiscard]] CheckpointIndex read_checkpoint(
    std::span<const std::string> paths,
    SourceOpener& opener);

}  // namespace ckpt_streamer::format
