#include <sys/stat.h>

#include "base/error.h"
#include "os/path_checks.h"

namespace ckpt_streamer::os {

void check_path(const std::string& path) {
  if (path.find('\0') != std::string::npos) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        path,
        "the path holds a NUL character, expected a file's name");
  }
}

void check_regular(
    const struct stat& status,
    const std::string& path,
    const char* expected) {
  if (!S_ISREG(status.st_mode)) {
    const char* const found =
        S_ISDIR(status.st_mode) ? "is a directory" : "is not a regular file";
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        path,
        std::string(found) + ", expected " + expected);
  }
}

}  // namespace ckpt_streamer::os
