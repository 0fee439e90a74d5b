#include <pthread.h>

#include <algorithm>
#include <thread>

#include "os/threads.h"

namespace ckpt_streamer::os {

int64_t current_thread_id() noexcept {
  uint64_t id = 0;
  ::pthread_threadid_np(nullptr, &id);
  return static_cast<int64_t>(id);
}

void be_prompt() noexcept {}

int usable_processor_count() noexcept {
  return static_cast<int>(std::max(std::thread::hardware_concurrency(), 1U));
}

ThreadCensus::~ThreadCensus() = default;

// Of no use here: madvise() never loses a write.
bool ThreadCensus::others_at_rest(const FindWorkers&) noexcept {
  return false;
}

}  // namespace ckpt_streamer::os
