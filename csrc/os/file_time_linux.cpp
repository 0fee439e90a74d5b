#include "os/file_time.h"

namespace ckpt_streamer::os {

int64_t modified_ns(const struct stat& status) noexcept {
  constexpr int64_t kSecond = 1'000'000'000;
  return int64_t{status.st_mtim.tv_sec} * kSecond + status.st_mtim.tv_nsec;
}

}  // namespace ckpt_streamer::os
