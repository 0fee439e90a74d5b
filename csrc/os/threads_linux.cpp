#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <string_view>

#include "os/threads.h"

namespace ckpt_streamer::os {
namespace {

constexpr size_t kMostThreads = 64;
constexpr char kTasks[] = "/proc/self/task";

// linux/sched/types.h, struct sched_attr. Policy 0 is SCHED_OTHER.
struct SchedulingAttributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime_nanoseconds;
  uint64_t deadline_nanoseconds;
  uint64_t period_nanoseconds;
  uint32_t least_utilization;
  uint32_t most_utilization;
};

// fs/proc/base.c, proc_task_getattr(): as many links as threads, and two. 0
// where it cannot be read.
uint64_t thread_count() noexcept {
  struct stat status{};
  return ::stat(kTasks, &status) == 0 && status.st_nlink > 2
             ? status.st_nlink - 2
             : 0;
}

class Text {
 public:
  explicit Text(int descriptor) noexcept {
    const ssize_t count =
        ::pread(descriptor, buffer_.data(), buffer_.size(), 0);
    rest_ = {buffer_.data(), static_cast<size_t>(std::max<ssize_t>(count, 0))};
  }

  [[nodiscard]] bool empty() const noexcept {
    return rest_.empty();
  }

  [[nodiscard]] bool starts_with(std::string_view text) const noexcept {
    return rest_.starts_with(text);
  }

  // The next number, decimal or after 0x hexadecimal; false if there is none.
  bool next(uint64_t& value) noexcept {
    rest_.remove_prefix(std::min(rest_.find_first_not_of(' '), rest_.size()));
    const bool is_hex = rest_.starts_with("0x");
    rest_.remove_prefix(is_hex ? 2 : 0);
    const auto parsed = std::from_chars(
        rest_.data(),
        rest_.data() + rest_.size(),
        value,
        is_hex ? 16 : 10);
    rest_.remove_prefix(static_cast<size_t>(parsed.ptr - rest_.data()));
    return parsed.ec == std::errc();
  }

 private:
  std::array<char, 256> buffer_;
  std::string_view rest_;
};

int open_file_of(int64_t thread, const char* name) {
  const std::string path =
      std::string(kTasks) + "/" + std::to_string(thread) + "/" + name;
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
}

}  // namespace

int64_t current_thread_id() noexcept {
  return ::gettid();
}

void be_prompt() noexcept {
  (void)::prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
  const sched_param lowest{1};
  if (::sched_setscheduler(0, SCHED_RR, &lowest) == 0) {
    return;
  }
  // The shortest slice that a thread may ask for (since 6.12).
  SchedulingAttributes attributes{};
  attributes.size = sizeof(attributes);
  attributes.nice = ::getpriority(PRIO_PROCESS, 0);
  attributes.runtime_nanoseconds = 100'000;
  (void)::syscall(SYS_sched_setattr, 0, &attributes, 0U);
}

// Of machines with more processors than a cpu_set_t counts (1024), none is said
// to be usable but one.
int usable_processor_count() noexcept {
  cpu_set_t usable;
  CPU_ZERO(&usable);
  return ::sched_getaffinity(0, sizeof(usable), &usable) == 0
             ? std::max(CPU_COUNT(&usable), 1)
             : 1;
}

ThreadCensus::~ThreadCensus() {
  close_all();
}

void ThreadCensus::close_all() noexcept {
  for (const Thread& thread : threads_) {
    for (const int descriptor :
         {thread.syscall_descriptor, thread.schedstat_descriptor}) {
      if (descriptor >= 0) {
        ::close(descriptor);
      }
    }
  }
  threads_.clear();
  owner_process_ = 0;
}

bool ThreadCensus::open_all() {
  close_all();
  DIR* const tasks = ::opendir(kTasks);
  if (tasks == nullptr) {
    return false;
  }
  while (const dirent* const entry = ::readdir(tasks)) {
    int64_t id = 0;
    const std::string_view name = entry->d_name;
    std::from_chars(name.data(), name.data() + name.size(), id);
    if (id > 0 && id != current_thread_id()) {
      threads_.push_back(
          {id,
           open_file_of(id, "syscall"),
           open_file_of(id, "schedstat"),
           /*run_count=*/0,
           Activity::kOther,
           /*is_ours=*/false,
           /*stretch_without_locks=*/0});
    }
  }
  ::closedir(tasks);
  owner_process_ = ::getpid();
  owner_thread_ = current_thread_id();
  return true;
}

// fs/proc/base.c, proc_pid_syscall(): "running", or the number of the system
// call that it is blocked in and its six arguments; "-1" for a fault.
ThreadCensus::Activity ThreadCensus::activity_of(
    const Thread& thread) noexcept {
  Text text(thread.syscall_descriptor);
  if (text.empty()) {
    return Activity::kGone;
  }
  if (text.starts_with("running")) {
    return Activity::kRunning;
  }
  uint64_t number = 0;
  std::array<uint64_t, 4> arguments{};  // address, operation, value, timeout
  bool is_complete = text.next(number);
  for (uint64_t& argument : arguments) {
    is_complete = is_complete && text.next(argument);
  }
  const uint64_t command = arguments[1] & FUTEX_CMD_MASK;
  const bool waits_for_process =
      is_complete && number == SYS_futex &&
      (command == FUTEX_WAIT || command == FUTEX_WAIT_BITSET) &&
      (arguments[1] & FUTEX_PRIVATE_FLAG) != 0 && arguments[3] == 0;
  if (waits_for_process) {
    return Activity::kWaitsForProcess;
  }
  return is_complete && (number == SYS_futex || number == SYS_nanosleep ||
                         number == SYS_clock_nanosleep)
             ? Activity::kWaits
             : Activity::kOther;
}

// Documentation/scheduler/sched-stats.rst: time spent on the processor, time
// spent waiting for one, number of timeslices run.
uint64_t ThreadCensus::run_count_of(const Thread& thread) noexcept {
  Text text(thread.schedstat_descriptor);
  uint64_t ignored = 0;
  uint64_t run_count = 0;
  return text.next(ignored) && text.next(ignored) && text.next(run_count)
             ? run_count
             : 0;
}

// In this order: one that was woken and has not run yet is told by its
// activity, and one that has run meanwhile by its run count.
bool ThreadCensus::still_waits(const Thread& thread) noexcept {
  return activity_of(thread) == thread.activity && thread.run_count != 0 &&
         run_count_of(thread) == thread.run_count;
}

bool ThreadCensus::look() noexcept {
  if (owner_process_ == ::getpid() && owner_thread_ == current_thread_id()) {
    return true;  // whether these are all is asked for in mid-look
  }
  try {
    return thread_count() <= kMostThreads && open_all();
  } catch (...) {  // no memory
    close_all();
    return false;
  }
}

bool ThreadCensus::others_at_rest(const FindWorkers& find_workers) noexcept {
  // Threads that came or went since the last call are found at the second try.
  for (int i = 0; i < 2 && look(); ++i) {
    const Answer answer = ask(find_workers);
    if (answer != Answer::kOthersNow) {
      return answer == Answer::kAtRest;
    }
    close_all();
  }
  return false;
}

ThreadCensus::Answer ThreadCensus::ask(
    const FindWorkers& find_workers) noexcept {
  // Twice: a thread that was seen waiting may be woken by one that is looked at
  // later and waits itself by then. If all have waited from their first look to
  // their second, all were waiting in the middle, and then none can wake
  // another. Nor can one of ours that held no lock in all that time.
  bool is_any_running = false;
  bool is_any_waiting = false;
  bool is_any_other = false;
  for (Thread& thread : threads_) {
    thread.is_ours = is_ours_and_writes_nothing(thread.id);
    thread.stretch_without_locks = stretch_without_locks(thread.id);
    thread.run_count = run_count_of(thread);
    thread.activity = activity_of(thread);
    switch (thread.activity) {
      case Activity::kGone:
        return Answer::kOthersNow;
      case Activity::kRunning:
        is_any_running = is_any_running || !thread.is_ours;
        break;
      case Activity::kWaitsForProcess:
        is_any_waiting = is_any_waiting || !thread.is_ours;
        break;
      case Activity::kWaits:
      case Activity::kOther:
        is_any_other = is_any_other || !thread.is_ours;
        break;
    }
  }
  std::vector<int64_t> workers;
  if (is_any_running && !is_any_other) {
    try {
      workers = find_workers();
    } catch (...) {
      return Answer::kMayRun;
    }
  }
  if (thread_count() != threads_.size() + 1) {
    return Answer::kOthersNow;
  }
  const auto is_at_rest = [&](const Thread& thread) {
    if (thread.is_ours) {
      return !is_any_waiting ||
             (thread.stretch_without_locks != 0 &&
              stretch_without_locks(thread.id) ==
                  thread.stretch_without_locks) ||
             ((thread.activity == Activity::kWaitsForProcess ||
               thread.activity == Activity::kWaits) &&
              still_waits(thread));
    }
    return std::find(workers.begin(), workers.end(), thread.id) !=
               workers.end() ||
           (thread.activity == Activity::kWaitsForProcess &&
            still_waits(thread));
  };
  const bool at_rest =
      std::all_of(threads_.begin(), threads_.end(), is_at_rest);
  return at_rest ? Answer::kAtRest : Answer::kMayRun;
}

}  // namespace ckpt_streamer::os
