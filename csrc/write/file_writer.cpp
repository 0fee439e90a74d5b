#include "write/file_writer.h"

#include <algorithm>
#include <utility>

#include "base/crc32.h"

namespace ckpt_streamer::write {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

// What is as large is written from where it lies.
constexpr size_t kUnbufferedBytes = size_t{256} * 1024;

}  // namespace

FileWriter::FileWriter(
    const FileLayout& layout,
    std::vector<uint64_t> sizes,
    ByteSink& sink)
    : layout_(layout),
      sink_(sink),
      sizes_(std::move(sizes)),
      written_bytes_(sizes_.size(), 0),
      checksums_(sizes_.size(), 0),
      buffer_(std::make_unique_for_overwrite<std::byte[]>(kBufferBytes)) {
  put(0, layout_.head());
}

void FileWriter::append(uint32_t storage, std::span<const std::byte> bytes) {
  if (bytes.empty()) {
    return;
  }
  if (written_bytes_[storage] == 0) {
    begin_storage(storage);
  }
  put(layout_.offset(storage) + written_bytes_[storage], bytes);
  written_bytes_[storage] += bytes.size();
  if (layout_.has_checksums()) {
    checksums_[storage] = crc32(bytes, checksums_[storage]);
  }
  if (written_bytes_[storage] == sizes_[storage]) {
    end_storage(storage);
  }
}

void FileWriter::begin_storage(uint32_t storage) {
  const std::string in_front = layout_.in_front(storage);
  put(layout_.offset(storage) - in_front.size(), in_front);
}

void FileWriter::end_storage(uint32_t storage) {
  put(layout_.offset(storage) + sizes_[storage],
      layout_.behind(storage, checksums_[storage]));
}

void FileWriter::finish() {
  for (uint32_t storage = 0; storage < sizes_.size(); ++storage) {
    if (sizes_[storage] == 0) {
      begin_storage(storage);
      end_storage(storage);
    }
  }
  const std::string tail = layout_.tail(checksums_);
  put(layout_.size_bytes() - tail.size(), tail);
  flush();
}

void FileWriter::put(uint64_t file_offset, std::span<const std::byte> bytes) {
  if (file_offset != buffer_offset_ + buffer_size_ ||
      bytes.size() > kBufferBytes - buffer_size_ ||
      bytes.size() >= kUnbufferedBytes) {
    flush();
    buffer_offset_ = file_offset;
  }
  if (bytes.size() >= kUnbufferedBytes) {
    sink_.write(file_offset, bytes);
    buffer_offset_ = file_offset + bytes.size();
    return;
  }
  std::copy(bytes.begin(), bytes.end(), buffer_.get() + buffer_size_);
  buffer_size_ += bytes.size();
}

void FileWriter::flush() {
  if (buffer_size_ != 0) {
    sink_.write(buffer_offset_, {buffer_.get(), buffer_size_});
    buffer_offset_ += buffer_size_;
    buffer_size_ = 0;
  }
}

}  // namespace ckpt_streamer::write
