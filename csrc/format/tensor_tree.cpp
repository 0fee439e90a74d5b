#include "format/tensor_tree.h"

#include "format/flat_walk.h"
#include "format/pickle_context.h"
#include "format/value_walk.h"

namespace ckpt_streamer::format {

void append_tensors(
    const TensorPickle& pickle,
    StorageLookup& storages,
    std::string_view root_name,
    CheckpointIndex& index) {
  PickleContext context(pickle, root_name);
  // A tensor refers to its storage by a persistent id of its own.
  const size_t count = pickle.tree.persistent_count();
  index.storages.reserve(index.storages.size() + count);
  index.tensors.reserve(index.tensors.size() + count);
  index.slots.reserve(index.slots.size() + count);
  // And some nodes of what is beside the tensors.
  constexpr size_t kOtherEntries = 512;
  index.values.reserve_entries(count + kOtherEntries);
  if (pickle.shared_containers == SharedContainers::kEachPath) {
    FlatWalk(context, storages, index).run();
  } else {
    ValueWalk(context, storages, index).run();
  }
}

}  // namespace ckpt_streamer::format
