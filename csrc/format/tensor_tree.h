// From a pickle to an index: walks the values of a pickle as torch.save and
// torch.jit.save write them and appends the tensors that it reaches.
//
// What calls mean is taken from torch 2.13: _utils.py (_rebuild_*), _tensor.py
// and nn/parameter.py. Location tags ("cuda:0") are ignored: everything is
// read as CPU memory.
#pragma once

#include <cstdint>
#include <string_view>

#include "format/checkpoint_index.h"
#include "format/pickle_machine.h"
#include "format/storage_lookup.h"

namespace ckpt_streamer::format {

// What a container is that is reached twice.
enum class SharedContainers : uint8_t {
  kOnce,      // walked once, under its first path
  kEachPath,  // walked under each of its paths, but not inside itself
};

struct TensorPickle {
  const PickleTree& tree;
  const PickleOrigin& origin;
  uint64_t size_bytes;  // of the pickle: bounds the names that it may ask for
  SharedContainers shared_containers = SharedContainers::kOnce;
};

// Appends to `index` a slot for each tensor that is reachable from the
// pickle's root, in the order of the walk, and the tensors and storages that
// the slots need. Names begin with `root_name`, and a '.' behind it if it is
// not empty; a root that is a tensor has that very name. May be called several
// times with pickles of one file; storages are shared within each.
//
// The slots are the strided tensors and parameters reachable from the root
// through dicts (also OrderedDict and defaultdict), lists, tuples and objects
// of TorchScript, in that order. Everything else in the pickle is passed over.
//
// ENSURES: every tensor's elements lie inside its storage; storages are those
// that a slot uses, each once; one TensorRecord for each rebuilt tensor,
// however many slots hold it.
// THROWS: CheckpointError Corrupt when the pickle contradicts itself or the
// storages, Unsupported for tensors that are not strided views of a storage and
// for shared containers that unfold to more than 64 values for each of the
// pickle's.
// Cost: O(pickle) time and memory; no tensor byte is read.
void append_tensors(
    const TensorPickle& pickle,
    StorageLookup& storages,
    std::string_view root_name,
    CheckpointIndex& index);

}  // namespace ckpt_streamer::format
