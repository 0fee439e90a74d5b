#include "os/file_system.h"

#include <fcntl.h>
#include <unistd.h>

#include "test_macros.h"

namespace ckpt_streamer::os {
namespace {

FileSystem kind_of(const char* path) {
  const int descriptor = ::open(path, O_RDONLY | O_CLOEXEC);
  const FileSystem kind = file_system_of(descriptor);
  ::close(descriptor);
  return kind;
}

TEST(file_systems_that_are_memory_are_known) {
  if (::access("/dev/shm", R_OK) == 0) {
    EXPECT(kind_of("/dev/shm") == FileSystem::kMemory);
  }
  EXPECT(kind_of("/proc/self/maps") == FileSystem::kDisk);
  EXPECT(file_system_of(-1) == FileSystem::kDisk);  // the system does not tell
}

}  // namespace
}  // namespace ckpt_streamer::os
