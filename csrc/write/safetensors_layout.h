// A safetensors file: see format/safetensors.h for the facts.
//
// Tensors come by the size of their elements, the largest first, so that each
// is aligned; otherwise in the order of the plan. The header ends on a multiple
// of 8 bytes, with spaces.
#pragma once

#include <string>
#include <vector>

#include "write/file_layout.h"

namespace ckpt_streamer::write {

class SafetensorsLayout final : public FileLayout {
 public:
  // REQUIRES: a file of slots, a storage for each, all of the format's dtypes.
  SafetensorsLayout(const std::string& path, const PlannedFile& file);

  [[nodiscard]] uint64_t size_bytes() const noexcept override {
    return size_bytes_;
  }
  [[nodiscard]] const std::string& head() const noexcept override {
    return head_;
  }
  [[nodiscard]] uint64_t offset(uint32_t storage) const noexcept override {
    return offsets_[storage];
  }
  [[nodiscard]] std::string in_front(uint32_t) const override {
    return {};
  }
  [[nodiscard]] std::string behind(uint32_t, uint32_t) const override {
    return {};
  }
  [[nodiscard]] std::string tail(std::span<const uint32_t>) const override {
    return {};
  }
  [[nodiscard]] bool has_checksums() const noexcept override {
    return false;
  }

 private:
  std::string head_;
  std::vector<uint64_t> offsets_;  // by storage
  uint64_t size_bytes_ = 0;
};

}  // namespace ckpt_streamer::write
