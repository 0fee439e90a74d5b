#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "base/error.h"
#include "os/output_file.h"
#include "os/path_checks.h"
#include "os/threads.h"

namespace ckpt_streamer::os {
namespace {

// Enough that telling the kernel costs nothing, and little enough that what is
// not on its way to the disk is soon there in the end.
constexpr uint64_t kWriteBackBytes = uint64_t{8} << 20;

// Most of what a system takes at once is 2 GiB less a page.
constexpr size_t kLargestWriteBytes = size_t{1} << 30;

std::string followed(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> real(
      ::realpath(path.c_str(), nullptr),
      &std::free);
  return real == nullptr ? path : std::string(real.get());
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) {
    return ".";
  }
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

OutputFile::OutputFile(
    std::string path,
    uint64_t size_bytes,
    Cache cache,
    Existing existing)
    : path_(std::move(path)),
      cache_(cache),
      existing_(existing),
      owner_process_(current_process_id()) {
  check_path(path_);
  target_ = followed(path_);
  folder_ = folder_of(target_);
  struct stat status = {};
  const bool exists = ::stat(target_.c_str(), &status) == 0;
  if (exists) {
    check_regular(status, path_, "the name of a file to write");
  }
  if (exists && existing_ == Existing::kRefuse) {
    throw_errno(path_, "write", EEXIST);
  }
  // What may not be written is not replaced either.
  if (exists && ::faccessat(AT_FDCWD, target_.c_str(), W_OK, AT_EACCESS) != 0) {
    throw_errno(path_, "write", errno);
  }
  open_unnamed();
  if (descriptor_ < 0) {
    open_named();
  }
  try {
    if (exists) {
      // A file system without modes has nothing to keep.
      (void)::fchmod(descriptor_, status.st_mode & 07777);
    }
    if (::ftruncate(descriptor_, static_cast<off_t>(size_bytes)) != 0) {
      throw_errno(path_, "write", errno);
    }
    reserve(size_bytes);
  } catch (...) {
    ::close(descriptor_);
    if (!temporary_.empty()) {
      ::unlink(temporary_.c_str());
    }
    throw;
  }
}

OutputFile::~OutputFile() {
  ::close(descriptor_);
  if (!is_published_ && !temporary_.empty() &&
      owner_process_ == current_process_id()) {
    ::unlink(temporary_.c_str());
  }
}

std::string OutputFile::temporary_path(uint64_t attempt) const {
  const size_t slash = target_.rfind('/');
  const std::string name =
      slash == std::string::npos ? target_ : target_.substr(slash + 1);
  // A file's name is of 255 bytes at most.
  return folder_ + "/." + name.substr(0, 200) + "." +
         std::to_string(::getpid()) + "-" + std::to_string(attempt) + ".part";
}

void OutputFile::open_named() {
  for (uint64_t attempt = 0;; ++attempt) {
    std::string name = temporary_path(attempt);
    descriptor_ =
        ::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ >= 0) {
      temporary_ = std::move(name);
      return;
    }
    if (errno != EEXIST) {
      throw_errno(path_, "write", errno);
    }
  }
}

void OutputFile::write(uint64_t file_offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(
        descriptor_,
        bytes.data(),
        std::min(bytes.size(), kLargestWriteBytes),
        static_cast<off_t>(file_offset));
    if (count < 0) {
      if (errno == EINTR) {
        continue;
      }
      throw_errno(path_, "write", errno);
    }
    const auto written = static_cast<size_t>(count);
    if (fresh_.end != file_offset) {
      start_writing_back(fresh_);
      fresh_ = {file_offset, file_offset};
    }
    bytes = bytes.subspan(written);
    file_offset += written;
    fresh_.end = file_offset;
    if (fresh_.size_bytes() >= kWriteBackBytes) {
      start_writing_back(fresh_);
      if (cache_ == Cache::kDrop) {
        drop_written(written_back_);
      }
      written_back_ = fresh_;
      fresh_ = {file_offset, file_offset};
    }
  }
}

void OutputFile::sync() {
  if (::fsync(descriptor_) != 0) {
    throw_errno(path_, "write", errno);
  }
  if (cache_ == Cache::kDrop) {
    drop_written({0, UINT64_MAX >> 1});
  }
}

void OutputFile::give_name() {
  for (uint64_t attempt = 0;; ++attempt) {
    std::string name = temporary_path(attempt);
    const int error_number = link_unnamed(name);
    if (error_number == 0) {
      temporary_ = std::move(name);
      return;
    }
    if (error_number != EEXIST) {
      throw_errno(path_, "write", error_number);
    }
  }
}

void OutputFile::publish() {
  int error_number = EEXIST;
  if (temporary_.empty()) {
    error_number = link_unnamed(target_);
  } else if (existing_ == Existing::kRefuse) {
    // Unlike rename(), it is refused where there is a file by now.
    error_number = ::link(temporary_.c_str(), target_.c_str()) == 0 ? 0 : errno;
    if (error_number == 0) {
      ::unlink(temporary_.c_str());
    }
  }
  if (error_number == EEXIST && existing_ == Existing::kReplace) {
    if (temporary_.empty()) {
      give_name();
    }
    error_number =
        ::rename(temporary_.c_str(), target_.c_str()) == 0 ? 0 : errno;
  }
  if (error_number != 0) {
    throw_errno(path_, "write", error_number);
  }
  is_published_ = true;
}

void OutputFile::sync_folder() const {
  const int folder =
      ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) {
    throw_errno(folder_, "open", errno);
  }
  const int error_number = ::fsync(folder) == 0 ? 0 : errno;
  ::close(folder);
  // Some file systems have nothing to do for it, and say so.
  if (error_number != 0 && error_number != EINVAL) {
    throw_errno(folder_, "write", error_number);
  }
}

void OutputFile::withdraw() noexcept {
  if (is_published_ && owner_process_ == current_process_id()) {
    ::unlink(target_.c_str());
  }
}

}  // namespace ckpt_streamer::os
