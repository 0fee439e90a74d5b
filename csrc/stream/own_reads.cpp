#include "stream/own_reads.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "os/threads.h"

namespace ckpt_streamer::stream {
namespace {

// Each side first says what it is about to do and then looks at the other:
// sequentially consistent, so that never both go ahead.
std::atomic<int> reader_count = 0;
std::atomic<int> evictor_count = 0;

// Those of the parent's other threads are never counted down in a child.
[[maybe_unused]] const bool is_reset_in_children = [] {
  os::at_fork_in_child([] { reader_count = evictor_count = 0; });
  return true;
}();

}  // namespace

OwnReads::OwnReads() noexcept {
  using std::chrono::steady_clock;
  ++reader_count;
  // Bounded: a watcher's thread may get no processor.
  const auto end = steady_clock::now() + std::chrono::milliseconds(50);
  while (evictor_count > 0 && steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

OwnReads::~OwnReads() {
  --reader_count;
}

EvictionTurn::EvictionTurn() noexcept {
  ++evictor_count;
  is_granted_ = reader_count == 0;
}

EvictionTurn::~EvictionTurn() {
  --evictor_count;
}

}  // namespace ckpt_streamer::stream
