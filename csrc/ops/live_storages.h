// The storages of a checkpoint that somebody still holds, so that a tensor made
// later shares the storage of one made earlier as long as that one lives.
//
// Thread-safe.
#pragma once

#include <c10/core/Storage.h>
#include <c10/util/intrusive_ptr.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace ckpt_streamer::ops {

class LiveStorages final : public std::enable_shared_from_this<LiveStorages> {
 public:
  // REQUIRES: owned by a shared_ptr before the first add().
  explicit LiveStorages(size_t storage_count) : storage_count_(storage_count) {}

  // The storage that was added at this index, while anybody else holds it; else
  // none.
  // REQUIRES: index < storage_count.
  [[nodiscard]] c10::Storage find(size_t index);

  // A storage over `memory`, to be found until its last holder lets go; or the
  // one that another thread added since find(), if anybody holds it.
  // REQUIRES: as find().
  [[nodiscard]] c10::Storage add(
      size_t index,
      size_t size_bytes,
      c10::DataPtr memory);

  // What add() was given for the storage that has this as its data; the data
  // itself if it is of no storage that was added.
  [[nodiscard]] static const c10::DataPtr& memory_of(const c10::DataPtr& data);

  // Finds none from now on; storages that are held stay as they are.
  void forget_all();

 private:
  using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

  // A storage's memory and its place in the table.
  struct Entry {
    std::shared_ptr<LiveStorages> owner;
    size_t index;
    c10::DataPtr memory;
    const c10::StorageImpl* storage;
  };

  static WeakStorage none() {
    return WeakStorage(c10::intrusive_ptr<c10::StorageImpl>());
  }
  static void end_entry(void* entry);
  void forget(const Entry& entry);

  const size_t storage_count_;
  std::mutex mutex_;
  // Empty until the first add(), and after forget_all(). A dead storage's place
  // is emptied at once: a weak reference keeps its block allocated, and a block
  // left behind each tensor splits the heap, so that what the caller frees
  // cannot be used again.
  std::vector<WeakStorage> storages_;
};

}  // namespace ckpt_streamer::ops
