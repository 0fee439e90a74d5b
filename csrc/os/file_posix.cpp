#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "base/checked_math.h"
#include "base/error.h"
#include "os/file.h"
#include "os/file_time.h"
#include "os/path_checks.h"
#include "os/residency.h"

namespace ckpt_streamer::os {
namespace {

struct stat status_of(int descriptor, const std::string& path) {
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0) {
    throw_errno(path, "stat", errno);
  }
  return status;
}

// Pages of a file, mapped to be read.
class MappedPages {
 public:
  // REQUIRES: the range begins at a page and is not empty.
  MappedPages(const File& file, const ByteRange& file_range) {
    void* const address = ::mmap(
        nullptr,
        file_range.size_bytes(),
        PROT_READ,
        MAP_PRIVATE,
        file.descriptor(),
        static_cast<off_t>(file_range.begin));
    if (address == MAP_FAILED) {
      throw_errno(file.path(), "map", errno);
    }
    addresses_.begin = reinterpret_cast<uint64_t>(address);
    addresses_.end = addresses_.begin + file_range.size_bytes();
  }
  ~MappedPages() {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): addresses are kept as numbers
    ::munmap(
        reinterpret_cast<void*>(addresses_.begin),
        addresses_.size_bytes());
  }
  MappedPages(const MappedPages&) = delete;
  MappedPages& operator=(const MappedPages&) = delete;

  [[nodiscard]] const ByteRange& addresses() const noexcept {
    return addresses_;
  }
  [[nodiscard]] const std::byte* bytes() const noexcept {
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    return reinterpret_cast<const std::byte*>(addresses_.begin);
  }

 private:
  ByteRange addresses_;
};

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
  check_path(path_);
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) {
    throw_errno(path_, "open", errno);
  }
  try {
    const struct stat status = status_of(descriptor_, path_);
    check_regular(status, path_, "a checkpoint file");
    size_bytes_ = static_cast<uint64_t>(status.st_size);
    modified_ns_ = modified_ns(status);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

File::~File() {
  ::close(descriptor_);
}

void File::check_inside(uint64_t file_offset, uint64_t byte_count) const {
  const auto end = checked_add(file_offset, byte_count);
  if (!end.has_value() || *end > size_bytes_) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        path_,
        "found " + std::to_string(size_bytes_) + " bytes, expected " +
            std::to_string(byte_count) + " more",
        file_offset);
  }
}

void File::fail_shrunk(uint64_t file_offset, uint64_t missing_bytes) const {
  throw CheckpointError(
      ErrorKind::kCorrupt,
      path_,
      "the file has shrunk from " + std::to_string(size_bytes_) +
          " bytes while it was read, expected " +
          std::to_string(missing_bytes) + " more",
      file_offset);
}

void File::read(uint64_t file_offset, std::span<std::byte> out) const {
  check_inside(file_offset, out.size());
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
      fail_shrunk(file_offset, out.size());
    }
    out = out.subspan(static_cast<size_t>(count));
    file_offset += static_cast<uint64_t>(count);
  }
}

void File::check_unshrunk(const ByteRange& range) const {
  const auto size_bytes =
      static_cast<uint64_t>(status_of(descriptor_, path_).st_size);
  const uint64_t end = std::max(size_bytes, range.begin);
  if (end < range.end) {
    fail_shrunk(end, range.end - end);
  }
}

ByteView File::view(const ByteRange& range) const {
  check_inside(range.begin, range.size_bytes());
  if (range.empty()) {
    return {};
  }
  check_unshrunk(range);
  const uint64_t map_begin = round_down(range.begin, page_size_bytes());
  const auto pages = std::make_shared<const MappedPages>(
      *this,
      ByteRange{map_begin, range.end});
  const ByteRange& addresses = pages->addresses();
  advise_huge_pages({&addresses, 1}, HugePages::kPrefer);
  // A page that cannot be had is an error here and would be a signal later.
  if (const int error_number =
          Residency(ScanMethod::kNone).populate(addresses)) {
    check_unshrunk(range);
    // As an error of the disk comes.
    throw_errno(path_, "read", error_number == EFAULT ? EIO : error_number);
  }
  const auto* const bytes = pages->bytes() + (range.begin - map_begin);
  return {{bytes, range.size_bytes()}, pages};
}

void File::check_unchanged() const {
  const struct stat status = status_of(descriptor_, path_);
  const auto size_bytes = static_cast<uint64_t>(status.st_size);
  if (size_bytes < size_bytes_) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        path_,
        "the file has shrunk to " + std::to_string(size_bytes) +
            " bytes since it was opened, expected " +
            std::to_string(size_bytes_));
  }
  if (size_bytes != size_bytes_ || modified_ns(status) != modified_ns_) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        path_,
        "the file was written to since it was opened, expected it to stay as "
        "it "
        "was: save to another path, and rename that");
  }
}

}  // namespace ckpt_streamer::os
