#include "os/file_system.h"

#include <sys/vfs.h>

#include <cstdint>

namespace ckpt_streamer::os {

// linux/magic.h, and of those that are not in it statfs(2).
FileSystem file_system_of(int descriptor) noexcept {
  struct statfs status = {};
  if (::fstatfs(descriptor, &status) != 0) {
    return FileSystem::kDisk;
  }
  switch (static_cast<uint32_t>(status.f_type)) {
    case 0x01021994:  // tmpfs
    case 0x858458f6:  // ramfs
      return FileSystem::kMemory;
    case 0x958458f6:  // hugetlbfs
      return FileSystem::kHugePages;
    case 0x65735546:  // FUSE
    case 0x6969:      // NFS
    case 0x517b:      // SMB
    case 0xfe534d42:  // SMB 2
    case 0xff534d42:  // CIFS
    case 0x01021997:  // 9p
    case 0x00c36400:  // Ceph
    case 0x5346414f:  // AFS
      return FileSystem::kRemote;
    default:
      return FileSystem::kDisk;
  }
}

}  // namespace ckpt_streamer::os
