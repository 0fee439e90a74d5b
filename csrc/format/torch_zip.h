// What torch.save's zip files mean: <prefix>/data.pkl says which tensors there
// are and <prefix>/data/<key> holds the bytes of storage <key>.
//
// Facts are from torch 2.13: serialization.py (_save, _load), _utils.py
// (_rebuild_*), storage.py and caffe2/serialize/inline_container. Location
// tags ("cuda:0") are ignored: everything is read as CPU memory.
#pragma once

#include "base/byte_source.h"
#include "format/checkpoint_index.h"
#include "format/zip_directory.h"

namespace ckpt_streamer::format {

// The slots are the tensors reachable from the root, in the order of the pickle
// (see tensor_tree.h); every other value is kept in index.values. TorchScript
// archives are torch_script.h's.
//
// ENSURES: as append_tensors; every record lies inside the file.
// THROWS: CheckpointError as append_tensors; Corrupt when zip, pickle and
// records contradict each other; Unsupported for archives of another kind
// (big-endian, compressed records). Cost: O(records + pickle) time and memory;
// no tensor byte is read.
[[nodiscard]] CheckpointIndex read_torch_zip(const ByteSource& source);

// The same with the directory already read.
// REQUIRES: `directory` was read from `source`.
[[nodiscard]] CheckpointIndex read_torch_zip(
    const ByteSource& source,
    const ZipDirectory& directory);

}  // namespace ckpt_streamer::format
