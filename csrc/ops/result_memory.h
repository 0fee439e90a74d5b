// Memory for what one stream makes, used again once it is gone: results that
// are made and dropped one after the other stay where they are in the
// processor's caches, and in memory that is mapped already. (glibc gives what
// is freed at the heap's end back to the system, 4 MiB at a time, and each
// result that is made there again costs a page fault for 4 KiB.)
//
// Thread-safe.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace ckpt_streamer::ops {

class ResultMemory final : public std::enable_shared_from_this<ResultMemory> {
 public:
  // Keeps at most so many bytes that nobody uses.
  explicit ResultMemory(size_t most_free_bytes)
      : most_free_bytes_(most_free_bytes) {}

  // A storage as at::empty's: of CPU memory, resizable, not initialised. It may
  // outlive this. REQUIRES: this is held by a shared_ptr.
  // THROWS: what the CPU allocator does.
  [[nodiscard]] c10::Storage make(size_t size_bytes);

  // Lets go of what nobody uses.
  void clear() noexcept;

  // Keeps nothing from now on.
  void close() noexcept;

 private:
  // In use: the context of a storage's data.
  struct Block {
    c10::DataPtr memory;
    size_t size_bytes;
    std::shared_ptr<ResultMemory> owner;  // null while it is free
  };

  using Blocks = std::vector<std::unique_ptr<Block>>;

  static void give_back(void* block) noexcept;
  [[nodiscard]] std::unique_ptr<Block> take(size_t size_bytes) noexcept;

  std::mutex mutex_;
  size_t most_free_bytes_;
  size_t free_bytes_ = 0;
  Blocks free_;
};

}  // namespace ckpt_streamer::ops
