#include "ops/result_memory.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/intrusive_ptr.h>

#include <algorithm>
#include <utility>

namespace ckpt_streamer::ops {

c10::Storage ResultMemory::make(size_t size_bytes) {
  c10::Allocator* const allocator = c10::GetCPUAllocator();
  std::unique_ptr<Block> block = take(size_bytes);
  if (block == nullptr) {
    block = std::make_unique<Block>(
        Block{allocator->allocate(size_bytes), size_bytes, nullptr});
  }
  block->owner = shared_from_this();
  void* const data = block->memory.get();
  return c10::Storage(
      c10::make_intrusive<c10::StorageImpl>(
          c10::StorageImpl::use_byte_size_t(),
          size_bytes,
          c10::DataPtr(data, block.release(), give_back, c10::kCPU),
          allocator,
          /*resizable=*/true));
}

std::unique_ptr<ResultMemory::Block> ResultMemory::take(
    size_t size_bytes) noexcept {
  const std::lock_guard lock(mutex_);
  // The last that was freed is the likeliest to be cached.
  const auto found =
      std::find_if(free_.rbegin(), free_.rend(), [&](const auto& block) {
        return block->size_bytes == size_bytes;
      });
  if (found == free_.rend()) {
    return nullptr;
  }
  std::unique_ptr<Block> block = std::move(*found);
  free_.erase(std::next(found).base());
  free_bytes_ -= size_bytes;
  return block;
}

void ResultMemory::give_back(void* context) noexcept {
  // Freed last, and outside the lock; so is what has to go for it.
  std::unique_ptr<Block> block(static_cast<Block*>(context));
  Blocks dropped;
  const std::shared_ptr<ResultMemory> owner = std::move(block->owner);
  const std::lock_guard lock(owner->mutex_);
  const size_t most_bytes = owner->most_free_bytes_;
  if (block->size_bytes > most_bytes) {
    return;
  }
  try {
    while (owner->free_bytes_ + block->size_bytes > most_bytes) {
      owner->free_bytes_ -= owner->free_.front()->size_bytes;
      dropped.push_back(std::move(owner->free_.front()));
      owner->free_.erase(owner->free_.begin());
    }
    const size_t size_bytes = block->size_bytes;
    owner->free_.push_back(std::move(block));
    owner->free_bytes_ += size_bytes;
  } catch (...) {  // no memory for the list: it is freed
  }
}

void ResultMemory::clear() noexcept {
  Blocks dropped;  // outside the lock
  const std::lock_guard lock(mutex_);
  free_bytes_ = 0;
  std::swap(dropped, free_);
}

void ResultMemory::close() noexcept {
  {
    const std::lock_guard lock(mutex_);
    most_free_bytes_ = 0;
  }
  clear();
}

}  // namespace ckpt_streamer::ops
