// The index of a sharded checkpoint: a JSON file that says which tensor is in
// which file beside it (model.safetensors.index.json,
// pytorch_model.bin.index.json).
//
// Facts are from huggingface_hub 1.0, serialization/_base.py
// (StateDictSplit, split_state_dict_into_shards_factory), and
// transformers 4.57, utils/hub.py (get_checkpoint_shard_files): {"metadata":
// {...}, "weight_map": {tensor: shard}}, shards in the order of their names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/byte_source.h"
#include "format/checkpoint_index.h"

namespace ckpt_streamer::format {

struct ShardIndex {
  struct Placement {
    std::string tensor_name;
    uint32_t shard = 0;  // in shard_names
  };

  std::vector<std::string> shard_names;  // ascending, distinct
  std::vector<Placement> placements;     // in the order of the file
  // Values that are not strings are as they stand in the file.
  std::vector<MetadataEntry> metadata;
};

// Whether a file is JSON, hence no checkpoint by itself: whether its first byte
// behind white space (4096 bytes at most) is '{'.
[[nodiscard]] bool is_json_object(const ByteSource& source);

// ENSURES: at least one tensor; tensor names are distinct; shard names are
// relative paths that stay inside the directory they are resolved in, as far as
// names tell: not empty, not absolute, no '..' part, no NUL.
// THROWS: CheckpointError Corrupt for anything else.
// Cost: O(file) time (O(n log n) for hostile names) and memory; the file is at
// most 100 MB, as a safetensors header.
[[nodiscard]] ShardIndex read_shard_index(const ByteSource& source);

}  // namespace ckpt_streamer::format
