// How much memory there is to be had now: on the machine, and in the container
// that the process runs in.
//
//                    Linux                                macOS
//   machine          MemAvailable of /proc/meminfo        free, inactive and
//                                                         purgeable pages
//   container        memory cgroups, v1 and v2: of the    nothing
//                    process's own and of each around it
//                    that is visible, the limit, less
//                    what is used, but for file pages
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace ckpt_streamer::os {

struct AvailableMemory {
  uint64_t bytes;  // may be 0
  // What leaves no more: the folder of a cgroup, or "the machine".
  std::string place;
};

// The smallest there is, of the machine and all cgroups; of equal ones, the
// machine. What the kernel could give back without swapping, cached files for
// one, is available. Nothing if the system tells nothing.
// `root`: where /proc and /sys are looked for, "" for the system's own; mount
// points in its mountinfo count from there.
// Cost: some reads of /proc and /sys, well below a millisecond.
[[nodiscard]] std::optional<AvailableMemory> available_memory(
    const std::string& root = "");

}  // namespace ckpt_streamer::os
