// When a file was last written to. POSIX, but for a name in struct stat.
#pragma once

#include <sys/stat.h>

#include <cstdint>

namespace ckpt_streamer::os {

// Nanoseconds since 1970, as exact as the file system has it.
[[nodiscard]] int64_t modified_ns(const struct stat& status) noexcept;

}  // namespace ckpt_streamer::os
