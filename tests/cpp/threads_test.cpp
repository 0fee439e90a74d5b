#include "os/threads.h"

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

using namespace std::chrono_literals;

const ThreadCensus::FindWorkers kNoWorkers = [] {
  return std::vector<int64_t>();
};

// A thread that is on its way to where it will wait is not at rest yet.
bool comes_to_rest(ThreadCensus& census) {
  for (int i = 0; i < 1000; ++i) {
    if (census.others_at_rest(kNoWorkers)) {
      return true;
    }
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

bool is_ever_at_rest(ThreadCensus& census) {
  for (int i = 0; i < 100; ++i) {
    if (census.others_at_rest(kNoWorkers)) {
      return true;
    }
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

// Waits for its end, as a thread of a pool waits for work.
class WaitingThread {
 public:
  WaitingThread()
      : thread_([this] {
          std::unique_lock lock(mutex_);
          condition_.wait(lock, [this] { return is_over_; });
        }) {}
  ~WaitingThread() {
    {
      const std::lock_guard lock(mutex_);
      is_over_ = true;
    }
    condition_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool is_over_ = false;
  std::thread thread_;
};

// TSan has a thread of its own, which sleeps: nothing is at rest then.
#ifndef THREAD_SANITIZED

TEST(a_process_of_one_thread_is_at_rest) {
  ThreadCensus census;
  EXPECT(census.others_at_rest(kNoWorkers));
}

TEST(threads_that_wait_for_work_are_at_rest) {
  const WaitingThread first;
  const WaitingThread second;
  ThreadCensus census;
  EXPECT(comes_to_rest(census));
  // What it knows of the threads is of use, not in the way, the next time.
  EXPECT(census.others_at_rest(kNoWorkers));
}

TEST(a_thread_that_runs_is_not_at_rest) {
  std::atomic<bool> is_over = false;
  std::atomic<int64_t> id = 0;
  std::thread thread([&] {
    id = current_thread_id();
    while (!is_over) {
    }
  });
  while (id == 0) {
  }
  {
    const WaitingThread other;
    ThreadCensus census;
    EXPECT(!is_ever_at_rest(census));
    // Unless it runs nothing but what the caller hands it.
    bool at_rest = false;
    for (int i = 0; i < 1000 && !at_rest; ++i) {
      std::this_thread::sleep_for(1ms);  // for the other to come to rest
      at_rest = census.others_at_rest(
          [&] { return std::vector<int64_t>{current_thread_id(), id}; });
    }
    EXPECT(at_rest);
  }
  is_over = true;
  thread.join();
}

TEST(a_thread_that_wakes_by_itself_is_not_at_rest) {
  std::mutex mutex;
  std::condition_variable condition;
  bool is_over = false;
  std::thread timed([&] {
    std::unique_lock lock(mutex);
    condition.wait_for(lock, 1h, [&] { return is_over; });
  });
  ThreadCensus census;
  EXPECT(!is_ever_at_rest(census));
  {
    const std::lock_guard lock(mutex);
    is_over = true;
  }
  condition.notify_one();
  timed.join();

  std::array<int, 2> ends{};
  EXPECT_EQ(::pipe(ends.data()), 0);
  std::thread reading([&] {
    char byte = 0;
    (void)!::read(ends[0], &byte, 1);
  });
  EXPECT(!is_ever_at_rest(census));
  EXPECT_EQ(::write(ends[1], "x", 1), ssize_t{1});
  reading.join();
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(a_thread_of_ours_is_at_rest_unless_it_writes) {
  std::atomic<bool> is_over = false;
  std::atomic<bool> writes = false;
  std::atomic<bool> may_write = false;
  std::thread thread = start_thread([&] {
    while (!is_over) {
      if (may_write) {
        const TensorWrites tensor_writes;
        writes = true;
        while (may_write) {
        }
        writes = false;
      }
    }
  });
  ThreadCensus census;
  EXPECT(comes_to_rest(census));
  may_write = true;
  while (!writes) {
  }
  EXPECT(!is_ever_at_rest(census));
  may_write = false;
  EXPECT(comes_to_rest(census));
  const pid_t child = ::fork();
  if (child == 0) {
    // That thread is the parent's: none of this process is ours.
    ::_exit(is_ours_and_writes_nothing(current_thread_id()) ? 1 : 0);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  is_over = true;
  thread.join();
}

// As one that holds a lock: it lets go of it when it likes.
TEST(a_thread_of_ours_that_runs_may_wake_one_that_waits) {
  std::atomic<bool> is_over = false;
  std::atomic<bool> goes_without = false;
  std::atomic<bool> is_without = false;
  std::thread thread = start_thread([&] {
    while (!is_over) {
      if (goes_without) {
        const WithoutLocks without_locks;
        is_without = true;
        while (goes_without) {
        }
      }
      is_without = false;
    }
  });
  ThreadCensus census;
  EXPECT(comes_to_rest(census));
  {
    const WaitingThread waiting;
    EXPECT(!is_ever_at_rest(census));
    goes_without = true;
    while (!is_without) {
    }
    EXPECT(comes_to_rest(census));
    goes_without = false;
    while (is_without) {
    }
    EXPECT(!is_ever_at_rest(census));
  }
  is_over = true;
  thread.join();
}

TEST(a_thread_of_ours_that_sleeps_wakes_none) {
  std::mutex mutex;
  std::condition_variable condition;
  bool is_over = false;
  std::thread timed = start_thread([&] {
    std::unique_lock lock(mutex);
    condition.wait_for(lock, 1h, [&] { return is_over; });
  });
  {
    const WaitingThread waiting;
    ThreadCensus census;
    EXPECT(comes_to_rest(census));
  }
  {
    const std::lock_guard lock(mutex);
    is_over = true;
  }
  condition.notify_one();
  timed.join();

  // But one that waits for input, or in any other call, may hold a lock.
  std::array<int, 2> ends{};
  EXPECT_EQ(::pipe(ends.data()), 0);
  std::thread reading = start_thread([&] {
    char byte = 0;
    (void)!::read(ends[0], &byte, 1);
  });
  {
    const WaitingThread waiting;
    ThreadCensus census;
    EXPECT(!is_ever_at_rest(census));
  }
  EXPECT_EQ(::write(ends[1], "x", 1), ssize_t{1});
  reading.join();
  ::close(ends[0]);
  ::close(ends[1]);
}

// On a busy machine, some time passes between the two.
TEST(a_thread_that_was_woken_and_has_not_run_is_not_at_rest) {
  cpu_set_t before;
  EXPECT_EQ(::sched_getaffinity(0, sizeof(before), &before), 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(::sched_getcpu(), &one);
  EXPECT_EQ(::sched_setaffinity(0, sizeof(one), &one), 0);
  std::mutex mutex;
  std::condition_variable condition;
  bool is_woken = false;
  std::atomic<bool> is_over = false;
  std::atomic<int64_t> running_id = 0;
  std::atomic<int64_t> waiting_id = 0;
  std::thread waiting([&] {
    waiting_id = current_thread_id();
    std::unique_lock lock(mutex);
    condition.wait(lock, [&] { return is_woken; });
    condition.wait(lock, [&] { return is_over.load(); });
  });
  ThreadCensus census;
  const bool rests = comes_to_rest(census);
  // It runs where this thread does, and only when this one leaves it room.
  const auto id = static_cast<pid_t>(waiting_id.load());
  const sched_param none{};
  EXPECT_EQ(::sched_setscheduler(id, SCHED_IDLE, &none), 0);
  std::thread running([&] {
    (void)::sched_setaffinity(0, sizeof(before), &before);
    running_id = current_thread_id();
    while (!is_over) {
    }
  });
  bool was_asked = false;
  bool was_at_rest = false;
  for (int i = 0; i < 1000 && !was_asked; ++i) {
    std::this_thread::sleep_for(1ms);
    was_at_rest = census.others_at_rest([&] {
      {
        const std::lock_guard lock(mutex);
        was_asked = is_woken = true;
      }
      condition.notify_one();
      return std::vector<int64_t>{current_thread_id(), running_id};
    });
  }
  (void)::sched_setscheduler(id, SCHED_OTHER, &none);
  {
    const std::lock_guard lock(mutex);
    is_woken = is_over = true;
  }
  condition.notify_one();
  running.join();
  waiting.join();
  EXPECT_EQ(::sched_setaffinity(0, sizeof(before), &before), 0);
  EXPECT(rests);
  EXPECT(was_asked);
  EXPECT(!was_at_rest);
}

TEST(threads_that_come_and_go_are_noticed) {
  ThreadCensus census;
  EXPECT(census.others_at_rest(kNoWorkers));
  {
    const WaitingThread first;
    EXPECT(comes_to_rest(census));
  }
  // As many as before, but others.
  std::atomic<bool> is_over = false;
  std::thread running([&] {
    while (!is_over) {
    }
  });
  EXPECT(!is_ever_at_rest(census));
  is_over = true;
  running.join();
  // The kernel lists it a little longer than it takes to join.
  EXPECT(comes_to_rest(census));
}

TEST(a_child_process_does_not_look_at_its_parents_threads) {
  const WaitingThread waiting;
  ThreadCensus census;
  EXPECT(comes_to_rest(census));
  const pid_t child = ::fork();
  EXPECT(child >= 0);
  if (child == 0) {
    // fork() copies the calling thread alone.
    ::_exit(census.others_at_rest(kNoWorkers) ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

#endif  // THREAD_SANITIZED

}  // namespace
}  // namespace ckpt_streamer::os
