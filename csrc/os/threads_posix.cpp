#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <new>
#include <utility>

#include "os/threads.h"

namespace ckpt_streamer::os {
namespace {

// A thread of ours. After a fork, the child's list still names the parent's
// threads; their numbers may come to be those of others there.
struct OwnThread {
  std::atomic<int64_t> thread_id = 0;  // 0: a free place
  std::atomic<int64_t> process_id = 0;
  std::atomic<bool> may_write = false;
  std::atomic<uint64_t> lock_turns = 0;  // odd: without locks
};

// Where there is no free place, a thread is not known to be ours.
std::array<OwnThread, 256> own_threads;

thread_local OwnThread* own_thread = nullptr;

// Null if it is not ours.
const OwnThread* find_own_thread(int64_t thread_id) noexcept {
  const int64_t process_id = current_process_id();
  for (const OwnThread& place : own_threads) {
    if (place.thread_id == thread_id) {
      return place.process_id == process_id ? &place : nullptr;
    }
  }
  return nullptr;
}

class Registration {
 public:
  Registration() noexcept {
    const int64_t process_id = current_process_id();
    for (OwnThread& place : own_threads) {
      int64_t found = place.thread_id;
      if ((found == 0 || place.process_id != process_id) &&
          place.thread_id.compare_exchange_strong(found, kTaken)) {
        place.may_write = false;
        place.lock_turns += place.lock_turns % 2;
        place.process_id = process_id;
        place.thread_id = current_thread_id();
        own_thread = &place;
        return;
      }
    }
  }
  ~Registration() {
    if (own_thread != nullptr) {
      own_thread->thread_id = 0;
    }
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

 private:
  static constexpr int64_t kTaken = -1;
};

// What a fork waits for.
std::array<std::atomic<ForkSafeMutex*>, 4> fork_safe_mutexes;

void lock_before_fork() {
  for (const auto& place : fork_safe_mutexes) {
    if (ForkSafeMutex* mutex = place) {
      mutex->lock();
    }
  }
}

void unlock_after_fork() {
  for (const auto& place : fork_safe_mutexes) {
    if (ForkSafeMutex* mutex = place) {
      mutex->unlock();
    }
  }
}

}  // namespace

ForkSafeMutex::ForkSafeMutex() {
  static const int error_number =
      ::pthread_atfork(lock_before_fork, unlock_after_fork, unlock_after_fork);
  (void)error_number;  // no memory: as any other mutex
  for (auto& place : fork_safe_mutexes) {
    ForkSafeMutex* none = nullptr;
    if (place.compare_exchange_strong(none, this)) {
      return;
    }
  }
}

int64_t current_process_id() noexcept {
  return ::getpid();
}

// A thread begins with the mask of the one that makes it.
std::thread start_thread(std::function<void()> body) {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread;
  try {
    thread = std::thread([run = std::move(body)] {
      const Registration registration;
      run();
    });
  } catch (...) {
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

// Never destroyed: a handle's destructor ends the process while it is joinable.
void leave_with_parent(std::thread thread) noexcept {
  alignas(std::thread) std::array<std::byte, sizeof(std::thread)> place;
  ::new (place.data()) std::thread(std::move(thread));
}

void at_fork_in_child(void (*reset)()) noexcept {
  (void)::pthread_atfork(nullptr, nullptr, reset);  // no memory: without it
}

TensorWrites::TensorWrites() noexcept {
  if (own_thread != nullptr) {
    own_thread->may_write = true;
  }
}

TensorWrites::~TensorWrites() {
  if (own_thread != nullptr) {
    own_thread->may_write = false;
  }
}

WithoutLocks::WithoutLocks() noexcept {
  if (own_thread != nullptr) {
    ++own_thread->lock_turns;
  }
}

WithoutLocks::~WithoutLocks() {
  if (own_thread != nullptr) {
    ++own_thread->lock_turns;
  }
}

bool is_ours_and_writes_nothing(int64_t thread_id) noexcept {
  const OwnThread* const thread = find_own_thread(thread_id);
  return thread != nullptr && !thread->may_write;
}

uint64_t stretch_without_locks(int64_t thread_id) noexcept {
  const OwnThread* const thread = find_own_thread(thread_id);
  const uint64_t turns = thread == nullptr ? 0 : thread->lock_turns.load();
  return turns % 2 == 1 ? turns : 0;
}

}  // namespace ckpt_streamer::os
