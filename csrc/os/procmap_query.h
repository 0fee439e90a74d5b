// PROCMAP_QUERY of the kernel's linux/fs.h (since 6.11), for headers older than
// the kernel that runs: what is mapped at an address, without reading all of
// /proc/self/maps. Linux alone.
#pragma once

#include <sys/ioctl.h>

#include <cstdint>

namespace ckpt_streamer::os {

struct ProcmapQuery {
  uint64_t size;
  uint64_t query_flags;
  uint64_t query_addr;
  uint64_t vma_start;
  uint64_t vma_end;
  uint64_t vma_flags;
  uint64_t vma_page_size;
  uint64_t vma_offset;
  uint64_t inode;
  uint32_t dev_major;
  uint32_t dev_minor;
  uint32_t vma_name_size;
  uint32_t build_id_size;
  uint64_t vma_name_addr;
  uint64_t build_id_addr;
};

inline constexpr unsigned long kProcmapQuery = _IOWR('f', 17, ProcmapQuery);
inline constexpr uint64_t kVmaIsShared = 0x08;
inline constexpr uint64_t kCoveringOrNextVma = 0x10;
inline constexpr uint64_t kFileBackedVma = 0x20;

}  // namespace ckpt_streamer::os
