// Reads a cold file into the kernel's cache ahead of whoever streams it, so
// that the disk works while the user does. Nothing becomes resident in the
// process but one page at a time. A file that is cached costs a few looks a
// request and no thread; for one that is not, a thread of its own runs from the
// first request to stop(). It runs no user code, writes to nothing, and takes
// no signals.
//
// Not thread-safe. In a child that was forked meanwhile, it begins anew.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "base/byte_range.h"
#include "os/backing_file.h"
#include "stream/backing_files.h"

namespace ckpt_streamer::stream {

class ReadAhead {
 public:
  ReadAhead();
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // What will be read next, in that order; replaces what was asked for before.
  // Comes back at once. Whatever the system refuses is not read ahead. Returns
  // whether all is cached, as far as a few looks tell.
  // REQUIRES: the ranges lie in private file mappings of this process.
  bool request(std::span<const ByteRange> ranges) noexcept;

  // Ends the thread, after what it is reading now: a block at most.
  void stop() noexcept;

  // Bytes that were not cached when they were asked for and were read since.
  [[nodiscard]] uint64_t prefetched_bytes() const noexcept;

 private:
  struct Block {
    std::shared_ptr<const os::BackingFile> file;
    uint64_t file_offset;
    bool is_known_cold;
  };
  struct Queue;  // what the thread and its owner share

  static void read_all(Queue& queue) noexcept;
  [[nodiscard]] bool may_be_cold(std::span<const ByteRange> ranges);
  std::vector<Block> cold_blocks(std::span<const ByteRange> ranges);
  void hand_over(std::vector<Block> blocks);
  void forget_the_parents() noexcept;

  BackingFiles files_;
  std::unique_ptr<Queue> queue_;
  std::thread thread_;
  int64_t owner_process_ = 0;
};

}  // namespace ckpt_streamer::stream
