#include <signal.h>
#include <unistd.h>

#include <utility>

#include "os/threads.h"

namespace ckpt_streamer::os {

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
    thread = std::thread(std::move(body));
  } catch (...) {
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

}  // namespace ckpt_streamer::os
