// A file in memory that is written at any place, with holes where nothing was.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "base/byte_sink.h"
#include "base/byte_source.h"

namespace ckpt_streamer::testing {

// Runs of bytes by their offset: a file may be larger than memory.
class SparseFile final : public ByteSink, public ByteSource {
 public:
  explicit SparseFile(uint64_t size_bytes) : size_bytes_(size_bytes) {}

  [[nodiscard]] const std::string& path() const noexcept override {
    return path_;
  }
  [[nodiscard]] uint64_t size_bytes() const noexcept override {
    return size_bytes_;
  }
  void write(uint64_t file_offset, std::span<const std::byte> bytes) override {
    runs_[file_offset] =
        std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    ++write_count;
    end_bytes = std::max(end_bytes, file_offset + bytes.size());
  }
  void read(uint64_t file_offset, std::span<std::byte> out) const override {
    std::fill(out.begin(), out.end(), std::byte{0});
    for (const auto& [begin, text] : runs_) {
      for (size_t i = 0; i < text.size(); ++i) {
        const uint64_t at = begin + i;
        if (at >= file_offset && at < file_offset + out.size()) {
          out[at - file_offset] = static_cast<std::byte>(text[i]);
        }
      }
    }
  }
  [[nodiscard]] ByteView view(const ByteRange& range) const override {
    const auto buffer = std::make_shared<std::string>(range.size_bytes(), '\0');
    read(range.begin, std::as_writable_bytes(std::span(*buffer)));
    return {std::as_bytes(std::span(*buffer)), buffer};
  }

  uint64_t write_count = 0;
  uint64_t end_bytes = 0;

 private:
  std::string path_ = "out";
  uint64_t size_bytes_;
  std::map<uint64_t, std::string> runs_;
};

}  // namespace ckpt_streamer::testing
