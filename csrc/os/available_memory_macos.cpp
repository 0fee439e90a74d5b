#include <mach/mach.h>

#include "os/available_memory.h"
#include "os/residency.h"

namespace ckpt_streamer::os {

std::optional<AvailableMemory> available_memory(const std::string&) {
  vm_statistics64_data_t statistics = {};
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  if (::host_statistics64(
          ::mach_host_self(),
          HOST_VM_INFO64,
          reinterpret_cast<host_info64_t>(&statistics),
          &count) != KERN_SUCCESS) {
    return std::nullopt;
  }
  const uint64_t pages = uint64_t{statistics.free_count} +
                         statistics.inactive_count + statistics.purgeable_count;
  return AvailableMemory{pages * page_size_bytes(), "the machine"};
}

}  // namespace ckpt_streamer::os
