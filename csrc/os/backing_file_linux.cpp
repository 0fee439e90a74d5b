#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>

#include "os/backing_file.h"
#include "os/procmap_query.h"
#include "os/residency.h"

namespace ckpt_streamer::os {
namespace {

// What the kernel says of the mapping at an address.
struct Mapping {
  ByteRange addresses;
  uint64_t file_offset = 0;
  uint64_t inode = 0;
  uint64_t device = 0;
  std::string path;
};

std::optional<Mapping> query(int maps_descriptor, uint64_t address) {
  std::array<char, PATH_MAX> name;
  ProcmapQuery query{};
  query.size = sizeof(query);
  query.query_flags = kFileBackedVma;
  query.query_addr = address;
  query.vma_name_addr = reinterpret_cast<uint64_t>(name.data());
  query.vma_name_size = name.size();
  if (::ioctl(maps_descriptor, kProcmapQuery, &query) != 0 ||
      query.vma_name_size == 0) {
    return std::nullopt;
  }
  return Mapping{
      {query.vma_start, query.vma_end},
      query.vma_offset,
      query.inode,
      makedev(query.dev_major, query.dev_minor),
      std::string(name.data(), query.vma_name_size - 1)};  // ends with a NUL
}

// proc_pid_maps(5): begin-end perms offset major:minor inode  path
std::optional<Mapping> find_line(uint64_t address) {
  std::ifstream maps("/proc/self/maps");
  std::string line;
  while (std::getline(maps, line)) {
    Mapping mapping;
    unsigned long long begin = 0;
    unsigned long long end = 0;
    unsigned long long offset = 0;
    unsigned long long inode = 0;
    unsigned int major = 0;
    unsigned int minor = 0;
    int path_at = 0;
    const int count = std::sscanf(
        line.c_str(),
        "%llx-%llx %*s %llx %x:%x %llu %n",
        &begin,
        &end,
        &offset,
        &major,
        &minor,
        &inode,
        &path_at);
    if (count == 6 && begin <= address && address < end) {
      return Mapping{
          {begin, end},
          offset,
          inode,
          makedev(major, minor),
          line.substr(static_cast<size_t>(path_at))};
    }
  }
  return std::nullopt;
}

std::optional<Mapping> mapping_at(uint64_t address) {
  const int maps = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) {
    return std::nullopt;
  }
  std::optional<Mapping> found = query(maps, address);
  ::close(maps);
  return found.has_value() ? found : find_line(address);
}

// Whether the descriptor is of the mapping's file. Numbers that fstat() and the
// mapping table give may differ, as on btrfs and overlayfs: then a mapping of
// the descriptor's is compared.
bool is_same_file(int descriptor, const Mapping& mapping) {
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    return false;
  }
  if (status.st_ino == mapping.inode && status.st_dev == mapping.device) {
    return true;
  }
  const uint64_t size = page_size_bytes();
  void* const page =
      ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (page == MAP_FAILED) {
    return false;
  }
  const auto other = mapping_at(reinterpret_cast<uint64_t>(page));
  ::munmap(page, size);
  return other.has_value() && other->inode == mapping.inode &&
         other->device == mapping.device;
}

// A mapping's own link, for those who may follow it, leads to its file also
// where that has no name any more (proc_pid_map_files(5)).
int open_file_of(const Mapping& mapping) {
  std::array<char, 64> link;
  std::snprintf(
      link.data(),
      link.size(),
      "/proc/self/map_files/%llx-%llx",
      static_cast<unsigned long long>(mapping.addresses.begin),
      static_cast<unsigned long long>(mapping.addresses.end));
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  int descriptor = ::open(link.data(), kFlags);
  if (descriptor < 0) {
    descriptor = ::open(mapping.path.c_str(), kFlags);
  }
  if (descriptor >= 0 && !is_same_file(descriptor, mapping)) {
    ::close(descriptor);
    descriptor = -1;
  }
  return descriptor;
}

}  // namespace

std::shared_ptr<const BackingFile> BackingFile::behind(
    uint64_t address) noexcept {
  try {
    const std::optional<Mapping> found = mapping_at(address);
    if (!found.has_value() || found->inode == 0) {
      return nullptr;
    }
    const int descriptor = open_file_of(*found);
    if (descriptor < 0) {
      return nullptr;
    }
    return std::make_shared<const BackingFile>(
        descriptor,
        found->addresses,
        found->file_offset);
  } catch (...) {  // no memory
    return nullptr;
  }
}

BackingFile::~BackingFile() {
  ::close(descriptor_);
}

bool BackingFile::shows_cached_pages() const noexcept {
  struct stat status = {};
  if (::fstat(descriptor_, &status) != 0) {
    return false;
  }
  // Root is as good as the owner where that one is a user of its namespace;
  // others are shown as this one (user_namespaces(7)).
  constexpr uid_t kOverflowUser = 65534;
  const bool is_root = ::geteuid() == 0 && status.st_uid != kOverflowUser;
  return is_root || status.st_uid == ::geteuid() ||
         ::faccessat(descriptor_, "", W_OK, AT_EACCESS | AT_EMPTY_PATH) == 0;
}

}  // namespace ckpt_streamer::os
