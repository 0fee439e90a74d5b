// The floor: reads the bytes of a checkpoint's tensors and converts them to
// bfloat16, with nothing else around it.
//
//   floor <file> <spans> <mmap|pread> <torch|loop> <threads>
//
// <spans> is a file of pairs of uint64: each tensor's offset and bytes in
// <file>, f32 numbers. For each line of stdin, one pass, whose seconds are
// printed: from opening the file to the last tensor. Unmapping is not timed.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/BFloat16.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Span {
  uint64_t offset;
  uint64_t size_bytes;
};

std::vector<Span> read_spans(const char* path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<Span> spans;
  for (Span span; file.read(reinterpret_cast<char*>(&span), sizeof(span));) {
    spans.push_back(span);
  }
  return spans;
}

// Round to nearest, ties to even; NaN stays NaN. One pass of integer
// arithmetic, which compilers vectorise.
void convert_by_loop(const float* source, uint64_t count, uint16_t* target) {
  for (uint64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, source + i, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    target[i] = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
  }
}

class Floor {
 public:
  Floor(std::string path, std::vector<Span> spans, bool maps, bool uses_torch)
      : path_(std::move(path)),
        spans_(std::move(spans)),
        maps_(maps),
        uses_torch_(uses_torch) {
    uint64_t largest = 0;
    for (const Span& span : spans_) {
      largest = std::max(largest, span.size_bytes);
    }
    read_.resize(largest / sizeof(float));
    converted_.resize(largest / sizeof(float));
  }

  double run() {
    const auto begin = std::chrono::steady_clock::now();
    const int descriptor = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status{};
    if (descriptor < 0 || fstat(descriptor, &status) != 0) {
      throw std::runtime_error("cannot open " + path_);
    }
    const auto size = static_cast<size_t>(status.st_size);
    void* mapping = nullptr;
    if (maps_) {
      mapping = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
      if (mapping == MAP_FAILED) {
        throw std::runtime_error("cannot map " + path_);
      }
      madvise(mapping, size, MADV_HUGEPAGE);
    }
    for (const Span& span : spans_) {
      const float* numbers = read_.data();
      if (maps_) {
        numbers = reinterpret_cast<const float*>(
            static_cast<const char*>(mapping) + span.offset);
      } else {
        read(descriptor, span);
      }
      convert(numbers, span.size_bytes / sizeof(float));
    }
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - begin;
    if (mapping) {
      munmap(mapping, size);
    }
    close(descriptor);
    return seconds.count();
  }

 private:
  void read(int descriptor, const Span& span) {
    auto* target = reinterpret_cast<char*>(read_.data());
    for (uint64_t done = 0; done < span.size_bytes;) {
      const ssize_t count = pread(
          descriptor,
          target + done,
          span.size_bytes - done,
          static_cast<off_t>(span.offset + done));
      if (count <= 0) {
        throw std::runtime_error("cannot read " + path_);
      }
      done += static_cast<uint64_t>(count);
    }
  }

  void convert(const float* numbers, uint64_t count) {
    if (uses_torch_) {
      (void)at::from_blob(
          const_cast<float*>(numbers),
          {static_cast<int64_t>(count)},
          at::kFloat)
          .to(at::kBFloat16);
    } else {
      convert_by_loop(numbers, count, converted_.data());
    }
  }

  std::string path_;
  std::vector<Span> spans_;
  bool maps_;
  bool uses_torch_;
  std::vector<float> read_;
  std::vector<uint16_t> converted_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    return 2;
  }
  try {
    at::set_num_threads(std::stoi(argv[5]));
    Floor floor(
        argv[1],
        read_spans(argv[2]),
        argv[3] == std::string("mmap"),
        argv[4] == std::string("torch"));
    for (std::string line; std::getline(std::cin, line);) {
      std::printf("%.6f\n", floor.run());
      std::fflush(stdout);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
