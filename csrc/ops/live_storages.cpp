#include "ops/live_storages.h"

#include <utility>

namespace ckpt_streamer::ops {

c10::Storage LiveStorages::find(size_t index) {
  WeakStorage found = none();
  {
    const std::lock_guard lock(mutex_);
    if (index < storages_.size()) {
      found = storages_[index];
    }
  }
  // Not under the mutex: a storage that Python knows takes Python's lock here,
  // which may be held by a thread that waits in forget().
  return c10::Storage(found.lock());
}

c10::Storage LiveStorages::add(
    size_t index,
    size_t size_bytes,
    c10::DataPtr memory) {
  void* const data = memory.get();
  auto entry = std::make_unique<Entry>(
      Entry{shared_from_this(), index, std::move(memory), nullptr});
  Entry& added = *entry;
  auto made = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(),
      size_bytes,
      c10::DataPtr(data, entry.release(), end_entry, c10::kCPU),
      /*allocator=*/nullptr,
      /*resizable=*/false);
  added.storage = made.get();
  WeakStorage weak(made);
  for (;;) {
    WeakStorage other = none();
    {
      const std::lock_guard lock(mutex_);
      if (storages_.empty()) {
        storages_.assign(storage_count_, none());
      }
      if (storages_[index].expired()) {
        std::swap(storages_[index], weak);
        return c10::Storage(std::move(made));
      }
      other = storages_[index];
    }
    // Not under the mutex, as in find().
    if (auto alive = other.lock()) {
      return c10::Storage(std::move(alive));
    }
  }
}

const c10::DataPtr& LiveStorages::memory_of(const c10::DataPtr& data) {
  return data.get_deleter() == end_entry
             ? static_cast<const Entry*>(data.get_context())->memory
             : data;
}

void LiveStorages::forget_all() {
  std::vector<WeakStorage> forgotten;
  const std::lock_guard lock(mutex_);
  std::swap(forgotten, storages_);
}

void LiveStorages::end_entry(void* entry) {
  const std::unique_ptr<Entry> ended(static_cast<Entry*>(entry));
  ended->owner->forget(*ended);
}

void LiveStorages::forget(const Entry& entry) {
  const std::lock_guard lock(mutex_);
  // Another thread may have added a new one between the end of the last holder
  // and here.
  if (entry.index < storages_.size() &&
      storages_[entry.index]._unsafe_get_target() == entry.storage) {
    storages_[entry.index].reset();
  }
}

}  // namespace ckpt_streamer::ops
