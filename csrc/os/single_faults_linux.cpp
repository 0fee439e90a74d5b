#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include "os/single_faults.h"
#include "os/threads.h"

// From the kernel's linux/userfaultfd.h, for headers older than the kernel that
// runs.
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

namespace ckpt_streamer::os {
namespace {

constexpr uint64_t kAsyncWriteProtection = uint64_t{1} << 15;

}  // namespace

bool SingleFaults::are_possible() noexcept {
  static std::atomic<int> known_error = -1;
  if (known_error < 0) {
    const int error_number = SingleFaults().open();
    if (error_number == EMFILE || error_number == ENFILE ||
        error_number == ENOMEM) {
      return false;
    }
    known_error = error_number;
  }
  return known_error == 0;
}

SingleFaults::~SingleFaults() {
  close();
}

void SingleFaults::close() noexcept {
  if (descriptor_ >= 0) {
    ::close(std::exchange(descriptor_, -1));
  }
}

int SingleFaults::open() noexcept {
  // A parent's descriptor names the parent's memory.
  if (descriptor_ >= 0 && owner_process_ == current_process_id()) {
    return 0;
  }
  close();
  // Faults in system calls are never waited for either: what users who are not
  // root may ask for is enough.
  descriptor_ = static_cast<int>(
      ::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  if (descriptor_ < 0) {
    return errno;
  }
  owner_process_ = current_process_id();
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = kAsyncWriteProtection;
  if (::ioctl(descriptor_, UFFDIO_API, &api) != 0) {
    const int error_number = errno;
    close();
    return error_number;
  }
  return 0;
}

int SingleFaults::begin(const ByteRange& range) noexcept {
  if (const int error_number = open(); error_number != 0) {
    return error_number;
  }
  uffdio_register what{};
  what.range = {range.begin, range.size_bytes()};
  what.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(descriptor_, UFFDIO_REGISTER, &what) == 0) {
    return 0;
  }
  const int error_number = errno;
  if (error_number != EBUSY) {
    end(range);  // what of it was registered before that
  }
  return error_number;
}

void SingleFaults::end(const ByteRange& range) noexcept {
  if (descriptor_ < 0 || owner_process_ != current_process_id()) {
    return;
  }
  uffdio_range where{range.begin, range.size_bytes()};
  ::ioctl(descriptor_, UFFDIO_UNREGISTER, &where);
}

}  // namespace ckpt_streamer::os
