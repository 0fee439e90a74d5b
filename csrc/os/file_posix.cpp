#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/checked_math.h"
#include "base/error.h"
#include "os/file.h"

namespace ckpt_streamer::os {
namespace {

struct stat status_of(int descriptor, const std::string& path) {
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0) {
    throw_errno(path, "stat", errno);
  }
  return status;
}

}  // namespace

PathKind path_kind(const std::string& path) noexcept {
  struct stat status = {};
  if (path.find('\0') != std::string::npos ||
      ::stat(path.c_str(), &status) != 0) {
    return PathKind::kMissing;
  }
  return S_ISDIR(status.st_mode) ? PathKind::kDirectory : PathKind::kOther;
}

File::File(std::string path) : path_(std::move(path)) {
  // open(2) would cut the name at a NUL and open another file.
  if (path_.find('\0') != std::string::npos) {
    throw CheckpointError(
        ErrorKind::kInvalidArgument,
        path_,
        "the path holds a NUL character, expected a file's name");
  }
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) {
    throw_errno(path_, "open", errno);
  }
  try {
    const struct stat status = status_of(descriptor_, path_);
    if (!S_ISREG(status.st_mode)) {
      throw CheckpointError(
          ErrorKind::kInvalidArgument,
          path_,
          std::string(
              S_ISDIR(status.st_mode) ? "is a directory"
                                      : "is not a regular file") +
              ", expected a checkpoint file");
    }
    size_bytes_ = static_cast<uint64_t>(status.st_size);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

File::~File() {
  ::close(descriptor_);
}

void File::read(uint64_t file_offset, std::span<std::byte> out) const {
  const auto end = checked_add(file_offset, out.size());
  if (!end.has_value() || *end > size_bytes_) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        path_,
        "found " + std::to_string(size_bytes_) + " bytes, expected " +
            std::to_string(out.size()) + " more",
        file_offset);
  }
  while (!out.empty()) {
    const ssize_t count = ::pread(
        descriptor_,
        out.data(),
        out.size(),
        static_cast<off_t>(file_offset));
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      throw_errno(path_, "read", errno);
    }
    if (count == 0) {
      throw CheckpointError(
          ErrorKind::kCorrupt,
          path_,
          "the file has shrunk from " + std::to_string(size_bytes_) +
              " bytes while it was read, expected " +
              std::to_string(out.size()) + " more",
          file_offset);
    }
    out = out.subspan(static_cast<size_t>(count));
    file_offset += static_cast<uint64_t>(count);
  }
}

uint64_t File::current_size_bytes() const {
  return static_cast<uint64_t>(status_of(descriptor_, path_).st_size);
}

}  // namespace ckpt_streamer::os
