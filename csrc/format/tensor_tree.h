// From a pickle to an index: walks the values of a pickle as torch.save and
// torch.jit.save write them and appends the tensors that it reaches, wherever
// they are. Nothing is called or imported.
//
// Location tags ("cuda:0") are ignored: everything is read as CPU memory.
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

// Appends to `index` a slot for each place that holds a tensor, in the order of
// the walk, and the tensors and storages that the slots need.
//
// With kOnce, for torch.save's pickles, every value becomes a node of
// index.values. Names are the keys from the root joined by '.', of lists,
// tuples and sets the positions. An object has up to five parts, walked in this
// order, and none of them adds a part of its own to the name: args by position,
// keyword args by key, items (of a class derived from list or set) by position,
// entries (of one derived from dict) by key, and its state, mostly its
// __dict__, by key: "model._modules.0._parameters.weight". A tensor that is a
// state as a whole has the object's name; a key that holds tensors is named by
// its own text. Such names may repeat. A storage by itself is a tensor of one
// dimension. REQUIRES: `root_name` and index.values are empty.
//
// With kEachPath, for TorchScript's, only what its pickler writes is walked:
// modules, which are their states, lists, tuples and dicts. Names begin with
// `root_name`, and a '.' behind it if it is not empty, and index.values is a
// dict of the names. May be called several times with pickles of one file;
// storages are shared within each.
//
// ENSURES: every tensor's elements lie inside its storage; storages are those
// that a slot uses, each once; one TensorRecord for each rebuilt tensor,
// however many slots hold it.
// THROWS: CheckpointError Corrupt when the pickle contradicts itself or the
// storages, Unsupported for tensors that are not strided views of a storage,
// for names that add up to more than 64 bytes for each of the pickle's, and for
// kEachPath when shared containers unfold to more than 64 values for each of
// the pickle's.
// Cost: O(pickle) time and memory; no tensor byte is read.
void append_tensors(
    const TensorPickle& pickle,
    StorageLookup& storages,
    std::string_view root_name,
    CheckpointIndex& index);

}  // namespace ckpt_streamer::format
