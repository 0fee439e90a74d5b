#include "ops/storage_holders.h"

#include <utility>

#include "ops/live_storages.h"
#include "ops/tensor_memory.h"

namespace ckpt_streamer::ops {
namespace {

// The checked accessors throw for storages that only pretend to have data and
// copy a lazily cloned one.
const at::DataPtr& data_of(const c10::Storage& storage) {
  return storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks();
}

}  // namespace

void StorageHolders::add(const at::Tensor& tensor, const ByteRange& span) {
  if (span.empty()) {
    return;
  }
  if (tensor.layout() == at::kStrided) {
    add_storage(tensor.unsafeGetTensorImpl()->unsafe_storage(), span);
    return;
  }
  for (const at::Tensor& component : sparse_components(tensor)) {
    add_storage(component.storage(), span);
  }
}

void StorageHolders::add_storage(
    const c10::Storage& storage,
    const ByteRange& span) {
  const at::DataPtr& data = data_of(storage);
  if (FileShare file = file_of(LiveStorages::memory_of(data))) {
    if (!files_.empty() && files_.back().file == file) {
      files_.back().hull = hull_of(files_.back().hull, span);
    } else {
      files_.push_back({std::move(file), span});
    }
    return;
  }
  // Two live pointers with one context and one deleter own it together, or it
  // would be deleted twice.
  if (!holders_.empty() && data.get_context() != nullptr) {
    Holder& last = holders_.back();
    if (last.context == data.get_context() &&
        last.deleter == data.get_deleter()) {
      last.hull = hull_of(last.hull, span);
      return;
    }
  }
  holders_.push_back(
      {storage, data.get(), data.get_context(), data.get_deleter(), span});
}

void StorageHolders::keep_if(
    const std::function<bool(const ByteRange&)>& is_needed) {
  const auto is_not_needed = [&](const auto& holder) {
    return !is_needed(holder.hull);
  };
  std::erase_if(holders_, is_not_needed);
  holders_.shrink_to_fit();
  std::erase_if(files_, is_not_needed);
}

std::vector<ByteRange> StorageHolders::take_moved() {
  std::vector<ByteRange> moved;
  std::erase_if(holders_, [&](const Holder& holder) {
    const at::DataPtr& data = data_of(holder.storage);
    const bool has_moved =
        data.get() != holder.data || data.get_context() != holder.context;
    if (has_moved) {
      moved.push_back(holder.hull);
    }
    return has_moved;
  });
  return moved;
}

}  // namespace ckpt_streamer::ops
