// A file on disk for one test, and looks at the pages of its mappings that do
// not go through the code under test.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/byte_range.h"
#include "os/residency.h"

namespace ckpt_streamer::testing {

// byte i of the file is i * 31 + i / 4096, truncated: pages differ.
inline char pattern_at(uint64_t offset) {
  return static_cast<char>(offset * 31 + offset / 4096);
}

class TemporaryFile {
 public:
  explicit TemporaryFile(uint64_t size_bytes) {
    const char* const folder = std::getenv("TMPDIR");
    path_ = std::string(folder == nullptr ? "/tmp" : folder) +
            "/ckpt_streamer_test_XXXXXX";
    const int descriptor = ::mkstemp(path_.data());
    if (descriptor < 0) {
      throw std::runtime_error("mkstemp failed");
    }
    ::close(descriptor);
    std::vector<char> bytes(size_bytes);
    for (uint64_t i = 0; i < size_bytes; ++i) {
      bytes[i] = pattern_at(i);
    }
    std::ofstream(path_, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(size_bytes));
  }
  ~TemporaryFile() {
    ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& path() const {
    return path_;
  }

 private:
  std::string path_;
};

// Takes a file out of the page cache, but for pages that somebody maps.
inline void make_cold(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool is_done =
      descriptor >= 0 && ::fsync(descriptor) == 0 &&
      ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED) == 0;
  ::close(descriptor);
  if (!is_done) {
    throw std::runtime_error("cannot drop " + path + " from the page cache");
  }
}

// A mapping of a whole file (`flags` as for mmap), or of no file.
class TestMapping {
 public:
  TestMapping(const std::string& path, uint64_t size_bytes, int flags)
      : size_bytes_(size_bytes) {
    const int descriptor =
        path.empty() ? -1 : ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    address_ = ::mmap(
        nullptr,
        size_bytes,
        PROT_READ | PROT_WRITE,
        flags,
        descriptor,
        0);
    if (descriptor >= 0) {
      ::close(descriptor);
    }
    if (address_ == MAP_FAILED) {
      throw std::runtime_error("mmap failed");
    }
  }
  ~TestMapping() {
    ::munmap(address_, size_bytes_);
  }
  TestMapping(const TestMapping&) = delete;
  TestMapping& operator=(const TestMapping&) = delete;

  volatile char* bytes() const {
    return static_cast<volatile char*>(address_);
  }
  ByteRange range() const {
    const auto begin = reinterpret_cast<uint64_t>(address_);
    return {begin, begin + size_bytes_};
  }
  void touch() const {
    for (uint64_t i = 0; i < size_bytes_; i += os::page_size_bytes()) {
      (void)bytes()[i];
    }
  }

  // What the kernel has of the file, mapped here or not.
  uint64_t cached_bytes() const {
    std::vector<unsigned char> states(size_bytes_ / os::page_size_bytes());
    if (::mincore(address_, size_bytes_, states.data()) != 0) {
      throw std::runtime_error("mincore failed");
    }
    return os::page_size_bytes() *
           static_cast<uint64_t>(std::count_if(
               states.begin(),
               states.end(),
               [](unsigned char state) { return (state & 1) != 0; }));
  }

  // From /proc/self/smaps: what is resident of the mappings that lie in here.
  struct Resident {
    uint64_t clean_bytes = 0;    // Rss - Anonymous
    uint64_t written_bytes = 0;  // Anonymous
    uint64_t huge_bytes = 0;     // FilePmdMapped
  };
  Resident resident() const {
    Resident total;
    std::ifstream smaps("/proc/self/smaps");
    std::string line;
    bool inside = false;
    while (std::getline(smaps, line)) {
      unsigned long long begin = 0;
      unsigned long long end = 0;
      unsigned long long kilobytes = 0;
      if (std::sscanf(line.c_str(), "%llx-%llx ", &begin, &end) == 2) {
        inside = range().contains({begin, end});
      } else if (
          inside &&
          std::sscanf(line.c_str(), "Rss: %llu kB", &kilobytes) == 1) {
        total.clean_bytes += kilobytes * 1024;
      } else if (
          inside &&
          std::sscanf(line.c_str(), "Anonymous: %llu kB", &kilobytes) == 1) {
        total.written_bytes += kilobytes * 1024;
        total.clean_bytes -= kilobytes * 1024;
      } else if (
          inside &&
          std::sscanf(line.c_str(), "FilePmdMapped: %llu kB", &kilobytes) ==
              1) {
        total.huge_bytes += kilobytes * 1024;
      }
    }
    return total;
  }

  // Whether so much of it is clean and resident within some seconds.
  bool comes_to_hold(uint64_t clean_bytes) const {
    for (int i = 0; i < 5000; ++i) {
      if (resident().clean_bytes >= clean_bytes) {
        return true;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

 private:
  uint64_t size_bytes_;
  void* address_ = nullptr;
};

}  // namespace ckpt_streamer::testing
