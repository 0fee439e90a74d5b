#include "stream/read_ahead.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "os/page_cache.h"
#include "os/threads.h"

namespace ckpt_streamer::stream {
namespace {

// Places at which a request is held against the cache: one that is wrong costs
// no more than a wait.
constexpr uint64_t kSamples = 8;

}  // namespace

struct ReadAhead::Queue {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Block> blocks;  // the next one is the last
  bool is_stopped = false;
  std::atomic<uint64_t> prefetched_bytes = 0;
};

ReadAhead::ReadAhead() : queue_(std::make_unique<Queue>()) {}

ReadAhead::~ReadAhead() {
  stop();
}

uint64_t ReadAhead::prefetched_bytes() const noexcept {
  return queue_->prefetched_bytes.load(std::memory_order_relaxed);
}

void ReadAhead::read_all(Queue& queue) noexcept {
  std::unique_lock lock(queue.mutex);
  for (;;) {
    queue.changed.wait(lock, [&] {
      return queue.is_stopped || !queue.blocks.empty();
    });
    if (queue.is_stopped) {
      return;
    }
    const Block block = std::move(queue.blocks.back());
    queue.blocks.pop_back();
    lock.unlock();
    bool waited = false;
    {
      const os::WithoutLocks without_locks;
      waited = os::prefetch(*block.file, block.file_offset);
    }
    if (waited || block.is_known_cold) {
      queue.prefetched_bytes.fetch_add(
          os::prefetch_block_bytes(),
          std::memory_order_relaxed);
    }
    lock.lock();
  }
}

void ReadAhead::stop() noexcept {
  forget_the_parents();
  if (!thread_.joinable()) {
    return;
  }
  {
    const std::lock_guard lock(queue_->mutex);
    queue_->is_stopped = true;
    queue_->blocks.clear();
  }
  queue_->changed.notify_one();
  thread_.join();
  queue_->is_stopped = false;
}

// The thread stayed with the parent, and may have held the lock when the child
// was made: what they shared is left behind.
void ReadAhead::forget_the_parents() noexcept {
  if (!thread_.joinable() || owner_process_ == os::current_process_id()) {
    return;
  }
  os::leave_with_parent(std::move(thread_));
  auto fresh = std::make_unique<Queue>();
  fresh->prefetched_bytes = prefetched_bytes();
  (void)queue_.release();
  queue_ = std::move(fresh);
}

bool ReadAhead::may_be_cold(std::span<const ByteRange> ranges) {
  uint64_t total_bytes = 0;
  for (const ByteRange& range : ranges) {
    total_bytes += range.size_bytes();
  }
  const uint64_t step_bytes = std::max<uint64_t>(total_bytes / kSamples, 1);
  uint64_t skipped_bytes = 0;  // of the step under way
  for (const ByteRange& range : ranges) {
    uint64_t at = range.begin;
    while (range.end - at > skipped_bytes) {
      at += skipped_bytes;
      if (!os::is_cached(at)) {
        return true;
      }
      skipped_bytes = step_bytes;
    }
    skipped_bytes -= range.end - at;
  }
  // Of files that do not show it, all are said to be cached.
  const auto file =
      ranges.empty() ? nullptr : files_.file_at(ranges.front().begin);
  return file != nullptr && !file->shows_cached_pages();
}

std::vector<ReadAhead::Block> ReadAhead::cold_blocks(
    std::span<const ByteRange> ranges) {
  const uint64_t block_bytes = os::prefetch_block_bytes();
  std::vector<Block> blocks;
  for (const ByteRange& range : ranges) {
    uint64_t at = range.begin;
    while (at < range.end) {
      const auto file = files_.file_at(at);
      if (file == nullptr) {
        break;
      }
      const ByteRange part = intersect({at, range.end}, file->addresses());
      const ByteRange in_file =
          round_outward(file->file_range(part), block_bytes);
      const bool is_hidden = !file->shows_cached_pages();
      for (uint64_t offset = in_file.begin; offset < in_file.end;
           offset += block_bytes) {
        if (!blocks.empty() && blocks.back().file == file &&
            blocks.back().file_offset >= offset) {
          continue;  // the last range ended in this block
        }
        const uint64_t begin = file->file_range(part).begin;
        const uint64_t address = part.begin + (std::max(offset, begin) - begin);
        const bool is_cold = !os::is_cached(address);
        if (is_cold || is_hidden) {
          blocks.push_back({file, offset, is_cold});
        }
      }
      at = part.end;
    }
  }
  std::reverse(blocks.begin(), blocks.end());
  return blocks;
}

void ReadAhead::hand_over(std::vector<Block> blocks) {
  {
    const std::lock_guard lock(queue_->mutex);
    std::swap(queue_->blocks, blocks);
  }
  if (thread_.joinable()) {
    queue_->changed.notify_one();
    return;
  }
  Queue& queue = *queue_;
  thread_ = os::start_thread([&queue] { read_all(queue); });
  owner_process_ = os::current_process_id();
}

bool ReadAhead::request(std::span<const ByteRange> ranges) noexcept {
  forget_the_parents();
  try {
    std::vector<Block> blocks;
    const bool is_cold = may_be_cold(ranges);
    if (is_cold) {
      blocks = cold_blocks(ranges);
    }
    if (!blocks.empty() || thread_.joinable()) {
      hand_over(std::move(blocks));
    }
    return !is_cold;
  } catch (...) {  // no memory, or no further thread: nothing is read ahead
    return false;
  }
}

}  // namespace ckpt_streamer::stream
