#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <vector>

#include "os/available_memory.h"

namespace ckpt_streamer::os {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// The files of a memory controller, and what it calls things.
struct Interface {
  bool is_unified;  // version 2
  std::vector<const char*> limits;
  const char* usage;
  std::vector<std::string_view> reclaimable;  // in memory.stat
};

const Interface& version_1() {
  static const Interface interface = {
      false,
      {"memory.limit_in_bytes"},
      "memory.usage_in_bytes",
      {"total_inactive_file", "total_active_file"}};
  return interface;
}

// What is above memory.high is throttled, which is no better than killed.
const Interface& version_2() {
  static const Interface interface = {
      true,
      {"memory.max", "memory.high"},
      "memory.current",
      {"inactive_file", "active_file"}};
  return interface;
}

// Where a hierarchy is mounted, and which of its cgroups is seen there.
struct Mount {
  const Interface* interface;
  std::string root;
  std::string point;
};

std::optional<uint64_t> number_in(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size()
             ? std::optional(number)
             : std::nullopt;
}

// The first word of a file; "" without one.
std::string word_of(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

bool has_word(
    const std::string& list,
    char separator,
    std::string_view searched) {
  std::istringstream words(list);
  std::string word;
  while (std::getline(words, word, separator)) {
    if (word == searched) {
      return true;
    }
  }
  return false;
}

// Spaces and the like are octal in mountinfo: proc_pid_mountinfo(5).
std::string unescaped(std::string_view text) {
  constexpr size_t kDigits = 3;
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = 0;
    const char* const digits = text.data() + i + 1;
    if (text[i] == '\\' && text.size() - i > kDigits &&
        std::from_chars(digits, digits + kDigits, byte, 8).ptr ==
            digits + kDigits) {
      result += static_cast<char>(byte);
      i += kDigits;
    } else {
      result += text[i];
    }
  }
  return result;
}

// id parent major:minor root point options [tags] - type source super-options
std::vector<Mount> memory_mounts(const std::string& root) {
  std::vector<Mount> mounts;
  std::ifstream lines(root + "/proc/self/mountinfo");
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::string skipped;
    std::string mount_root;
    std::string point;
    fields >> skipped >> skipped >> skipped >> mount_root >> point;
    while (fields >> skipped && skipped != "-") {
    }
    std::string type;
    std::string options;
    fields >> type >> skipped >> options;
    const Interface* const interface =
        type == "cgroup2"                                      ? &version_2()
        : type == "cgroup" && has_word(options, ',', "memory") ? &version_1()
                                                               : nullptr;
    if (interface != nullptr) {
      mounts.push_back({interface, unescaped(mount_root), unescaped(point)});
    }
  }
  return mounts;
}

// hierarchy:controllers:path; version 2 is hierarchy 0, without controllers.
std::optional<std::string> path_of_group(
    const std::string& root,
    const Interface& interface) {
  std::ifstream lines(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(lines, line)) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) {
      continue;
    }
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (interface.is_unified ? line.starts_with("0::")
                             : has_word(controllers, ',', "memory")) {
      return line.substr(second + 1);
    }
  }
  return std::nullopt;
}

// The process's cgroup from the mount point on: "" for the mount point itself,
// as where a container sees its own cgroup there and has a path from outside.
std::string path_below(const Mount& mount, const std::string& path) {
  const std::string prefix = mount.root == "/" ? "" : mount.root;
  const bool is_below =
      path.starts_with(prefix) &&
      (path.size() == prefix.size() || path[prefix.size()] == '/') &&
      !path.starts_with("/..");
  const std::string below = is_below ? path.substr(prefix.size()) : "";
  return below == "/" ? "" : below;
}

uint64_t sum_in_stat(
    const std::string& path,
    const std::vector<std::string_view>& names) {
  std::ifstream lines(path);
  uint64_t sum = 0;
  std::string name;
  uint64_t value = 0;
  while (lines >> name >> value) {
    if (std::find(names.begin(), names.end(), name) != names.end()) {
      sum += value;
    }
  }
  return sum;
}

// Nothing for a cgroup without a limit of its own.
std::optional<uint64_t> available_in(
    const std::string& folder,
    const Interface& interface) {
  uint64_t limit = kNoLimit;
  for (const char* const name : interface.limits) {
    // "max", or no such file: none. So does version 1's largest number, as
    // long as the machine has less memory.
    limit = std::min(
        limit,
        number_in(word_of(folder + "/" + name)).value_or(kNoLimit));
  }
  const auto used = number_in(word_of(folder + "/" + interface.usage));
  if (limit == kNoLimit || !used.has_value()) {
    return std::nullopt;
  }
  const uint64_t cached =
      sum_in_stat(folder + "/memory.stat", interface.reclaimable);
  const uint64_t held = *used - std::min(*used, cached);
  return limit - std::min(limit, held);
}

std::optional<uint64_t> available_on_machine(const std::string& root) {
  std::ifstream lines(root + "/proc/meminfo");
  std::string line;
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::string name;
    uint64_t kibibytes = 0;
    if (fields >> name >> kibibytes && name == "MemAvailable:") {
      return kibibytes * 1024;
    }
  }
  return std::nullopt;
}

void take_smaller(
    std::optional<AvailableMemory>& smallest,
    std::optional<uint64_t> bytes,
    const std::string& place) {
  if (bytes.has_value() &&
      (!smallest.has_value() || *bytes < smallest->bytes)) {
    smallest = {*bytes, place};
  }
}

}  // namespace

std::optional<AvailableMemory> available_memory(const std::string& root) {
  std::optional<AvailableMemory> smallest;
  take_smaller(smallest, available_on_machine(root), "the machine");
  for (const Mount& mount : memory_mounts(root)) {
    const auto path = path_of_group(root, *mount.interface);
    if (!path.has_value()) {
      continue;
    }
    // Its own cgroup, then those around it.
    for (std::string below = path_below(mount, *path);;
         below.resize(below.rfind('/'))) {
      const std::string folder = mount.point + below;
      take_smaller(
          smallest,
          available_in(root + folder, *mount.interface),
          folder);
      if (below.empty()) {
        break;
      }
    }
  }
  return smallest;
}

}  // namespace ckpt_streamer::os
