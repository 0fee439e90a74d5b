// The archive of torch.save, record by record as torch.save writes it: stored,
// each record's bytes at a multiple of 64, its checksum behind it.
//
// Facts are from APPNOTE 6.3.10 (format/zip_directory.h), torch 2.13
// (serialization.py, _save; caffe2/serialize/inline_container.cc,
// PyTorchStreamWriter) and its miniz.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "write/file_layout.h"

namespace ckpt_streamer::write {

class ZipLayout final : public FileLayout {
 public:
  // In front of them: data.pkl and three records of torch's own.
  static constexpr size_t kFirstStorage = 4;

  // `pickle`: data.pkl, in which storage i is called i.
  ZipLayout(const PlannedFile& file, const std::string& pickle);

  [[nodiscard]] uint64_t size_bytes() const noexcept override {
    return size_bytes_;
  }
  [[nodiscard]] const std::string& head() const noexcept override {
    return head_;
  }
  [[nodiscard]] uint64_t offset(uint32_t storage) const noexcept override {
    return records_[kFirstStorage + storage].data_offset;
  }
  [[nodiscard]] std::string in_front(uint32_t storage) const override {
    return local_header(records_[kFirstStorage + storage]);
  }
  [[nodiscard]] std::string behind(uint32_t storage, uint32_t crc32)
      const override {
    return descriptor(records_[kFirstStorage + storage], crc32);
  }
  [[nodiscard]] std::string tail(
      std::span<const uint32_t> checksums) const override;
  [[nodiscard]] bool has_checksums() const noexcept override {
    return true;
  }

 private:
  struct Record {
    std::string name;
    uint64_t header_offset = 0;
    uint64_t data_offset = 0;
    uint64_t size_bytes = 0;

    [[nodiscard]] bool is_large() const noexcept {
      return size_bytes >= 0xFFFFFFFF;
    }
    // Behind its bytes.
    [[nodiscard]] uint64_t descriptor_bytes() const noexcept {
      return is_large() ? 24 : 16;
    }
  };

  void add(std::string name, uint64_t size_bytes);
  static std::string local_header(const Record& record);
  static std::string descriptor(const Record& record, uint32_t crc32);
  static void append_directory_entry(
      std::string& out,
      const Record& record,
      uint32_t crc32);
  // The record and its bytes; returns their checksum.
  static uint32_t append_record(
      std::string& out,
      const Record& record,
      std::string_view bytes);
  void append_directory(std::string& out, std::span<const uint32_t> checksums)
      const;
  [[nodiscard]] std::string serialization_id(
      std::span<const uint32_t> checksums) const;

  std::vector<Record> records_;  // in the order of the file
  size_t storage_count_ = 0;
  std::string head_;
  std::vector<uint32_t> head_checksums_;
  uint64_t next_offset_ = 0;  // behind what was laid out
  uint64_t size_bytes_ = 0;
};

}  // namespace ckpt_streamer::write
