// The threads of this process: making one, and whether any other can run user
// code at this moment.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace ckpt_streamer::os {

[[nodiscard]] int64_t current_thread_id() noexcept;
[[nodiscard]] int64_t current_process_id() noexcept;

// A thread of ours, that no signal is delivered to: signals are for the user's
// threads. It runs nothing of the user's, writes to no tensor but while a
// TensorWrites lives, and holds no lock while it sleeps or waits for a
// condition with a time limit. What ThreadCensus makes of it is said there.
// THROWS: std::system_error when the system has no further thread.
[[nodiscard]] std::thread start_thread(std::function<void()> body);

// Gives up the handle of a thread that stayed with the process this one was
// forked from. What it names is the parent's: here, its memory may be unmapped
// or another thread's by now, so that it can be neither joined nor detached.
void leave_with_parent(std::thread thread) noexcept;

// Has every child that is forked from now on run this first: it may be in the
// midst of anything that other threads of the parent do, and takes no lock.
void at_fork_in_child(void (*reset)()) noexcept;

// For data of the whole process: nobody else holds it while the process forks,
// so that the child finds the data whole. It lives for ever.
class ForkSafeMutex {
 public:
  // REQUIRES: at most 4 are ever made.
  ForkSafeMutex();
  ForkSafeMutex(const ForkSafeMutex&) = delete;
  ForkSafeMutex& operator=(const ForkSafeMutex&) = delete;
  void lock() {
    mutex_.lock();
  }
  void unlock() {
    mutex_.unlock();
  }

 private:
  std::mutex mutex_;
};

// Says that the calling thread, made by start_thread(), may write to tensors as
// long as this lives. Elsewhere, nothing.
class TensorWrites {
 public:
  TensorWrites() noexcept;
  ~TensorWrites();
  TensorWrites(const TensorWrites&) = delete;
  TensorWrites& operator=(const TensorWrites&) = delete;
};

// Says that the calling thread, made by start_thread(), neither holds nor takes
// a lock as long as this lives, so that no other thread waits for it: for what
// takes long. Elsewhere, nothing. REQUIRES: no other one lives on the thread.
class WithoutLocks {
 public:
  WithoutLocks() noexcept;
  ~WithoutLocks();
  WithoutLocks(const WithoutLocks&) = delete;
  WithoutLocks& operator=(const WithoutLocks&) = delete;
};

// Whether a thread of this process was made by start_thread() and may write to
// no tensor now. Takes no lock.
[[nodiscard]] bool is_ours_and_writes_nothing(int64_t thread_id) noexcept;

// Which WithoutLocks lives on a thread of ours: no two have the same number. 0
// if none does. Takes no lock.
[[nodiscard]] uint64_t stretch_without_locks(int64_t thread_id) noexcept;

// Has the calling thread, which works little and at short notice, run as soon
// as it is due: before others where the user may ask for that (SCHED_RR, as
// root or by RLIMIT_RTPRIO), else with a short time slice; and wake in time.
// Refusals are ignored. macOS: nothing.
void be_prompt() noexcept;

// Processors that this process may run on: at least 1. Shares of them, as a
// container's quota gives, are not known here.
[[nodiscard]] int usable_processor_count() noexcept;

// Looks at the process's threads again and again, cheaply. Not thread-safe.
//
// Linux: /proc/self/task/TID/syscall and schedstat. macOS: never at rest.
class ThreadCensus {
 public:
  // Finds the threads that run nothing but what the caller hands them (those of
  // a parallel region), the caller included.
  using FindWorkers = std::function<std::vector<int64_t>()>;

  ThreadCensus() = default;
  ~ThreadCensus();
  ThreadCensus(const ThreadCensus&) = delete;
  ThreadCensus& operator=(const ThreadCensus&) = delete;

  // True if nothing but the caller can run until the caller itself does
  // something about it: every other thread is a worker of the caller's, waits
  // without a time limit for a futex that only this process can wake, or is one
  // of ours that writes to no tensor (start_thread()). Where any waits, ours
  // must hold no lock that it may wait for: they sleep, wait themselves, or are
  // WithoutLocks.
  // False if that is not known: a thread runs, sleeps, waits for input or for a
  // lock with a time limit, or there are more than 64 threads.
  //
  // A signal's handler can still run, as it can in a process of one thread.
  // `find_workers` is called only if a thread is running.
  // Cost: 4 system calls a thread and 1; more after threads came or went.
  [[nodiscard]] bool others_at_rest(const FindWorkers& find_workers) noexcept;

 private:
  enum class Activity {
    kRunning,
    kWaitsForProcess,
    kWaits,  // for any other futex, or for a time
    kOther,
    kGone
  };
  struct Thread {
    int64_t id;
    int syscall_descriptor;
    int schedstat_descriptor;
    uint64_t run_count;  // how often it has been given a processor
    Activity activity;
    bool is_ours;  // and writes to no tensor
    uint64_t stretch_without_locks;
  };
  enum class Answer { kAtRest, kMayRun, kOthersNow };

  // Whether there are threads to ask for.
  bool look() noexcept;
  Answer ask(const FindWorkers& find_workers) noexcept;
  bool open_all();
  void close_all() noexcept;
  static Activity activity_of(const Thread& thread) noexcept;
  // 0 where it cannot be read.
  static uint64_t run_count_of(const Thread& thread) noexcept;
  // Whether it has waited ever since it was looked at.
  static bool still_waits(const Thread& thread) noexcept;

  std::vector<Thread> threads_;  // all but the caller
  int64_t owner_process_ = 0;
  int64_t owner_thread_ = 0;
};

}  // namespace ckpt_streamer::os
