#include "os/mapped_file.h"

#include <sys/mman.h>

#include <cerrno>

#include "base/error.h"

namespace ckpt_streamer::os {

MappedFile::MappedFile(const File& file) {
  if (file.size_bytes() == 0) {
    throw CheckpointError(
        ErrorKind::kCorrupt,
        file.path(),
        "is empty, expected a checkpoint");
  }
  // MAP_NORESERVE: a private writable mapping counts against the commit limit
  // otherwise, and a file larger than memory is refused at once.
  void* const address = ::mmap(
      nullptr,
      file.size_bytes(),
      PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_NORESERVE,
      file.descriptor(),
      0);
  if (address == MAP_FAILED) {
    throw_errno(file.path(), "map", errno);
  }
  addresses_.begin = reinterpret_cast<uint64_t>(address);
  addresses_.end = addresses_.begin + file.size_bytes();
}

MappedFile::~MappedFile() {
  ::munmap(at(0), addresses_.size_bytes());
}

}  // namespace ckpt_streamer::os
