// What kind of file system a file lies on, as far as it matters to those who
// give back its pages.
//
//   kDisk      given back, a page is the kernel's cached copy, then the disk's.
//   kMemory    tmpfs, ramfs: the file is memory. Given back, a page leaves this
//              process and stays charged to whoever wrote it; it cannot leave
//              the kernel's cache.
//   kHugePages hugetlbfs: likewise, in whole huge pages that no process counts
//              as resident.
//   kRemote    FUSE, NFS, SMB, 9p, Ceph, AFS: given back and dropped from the
//              cache, a page is asked for again from somebody else, who may
//              have changed it, or be gone.
//
// macOS: always kDisk.
#pragma once

namespace ckpt_streamer::os {

enum class FileSystem { kDisk, kMemory, kHugePages, kRemote };

// By fstatfs(2)'s type; kDisk where the system does not tell.
[[nodiscard]] FileSystem file_system_of(int descriptor) noexcept;

}  // namespace ckpt_streamer::os
