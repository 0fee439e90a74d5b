// Goes through a stretch of a source once, from front to end, with little of it
// in memory at a time. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "base/byte_range.h"
#include "base/byte_source.h"

namespace ckpt_streamer::format {

class SourceReader {
 public:
  // REQUIRES: `source` outlives this; the range is inside it.
  SourceReader(const ByteSource& source, const ByteRange& file_range) noexcept
      : source_(source), next_(file_range.begin), end_(file_range.end) {}
  SourceReader(const SourceReader&) = delete;
  SourceReader& operator=(const SourceReader&) = delete;

  // In the file, of the next byte.
  [[nodiscard]] uint64_t file_offset() const noexcept {
    return next_ - buffered_bytes();
  }
  [[nodiscard]] uint64_t remaining_bytes() const noexcept {
    return end_ - file_offset();
  }

  // The next bytes, in one piece; valid until the next call. Needs memory for
  // all of them.
  // REQUIRES: byte_count <= remaining_bytes(). THROWS: as ByteSource::read.
  const std::byte* take(uint64_t byte_count) {
    if (byte_count > buffered_bytes()) [[unlikely]] {
      fill(byte_count);
    }
    return std::exchange(cursor_, cursor_ + byte_count);
  }

  // As take(), but they stay the next ones.
  const std::byte* peek(uint64_t byte_count) {
    if (byte_count > buffered_bytes()) [[unlikely]] {
      fill(byte_count);
    }
    return cursor_;
  }

  // Goes on behind the next bytes; those that are not in memory are not read.
  // REQUIRES: byte_count <= remaining_bytes().
  void skip(uint64_t byte_count) noexcept {
    const uint64_t buffered = std::min(byte_count, buffered_bytes());
    cursor_ += buffered;
    next_ += byte_count - buffered;
  }

  // How many of the next bytes are in memory already; a cheap lower bound of
  // remaining_bytes().
  [[nodiscard]] uint64_t buffered_bytes() const noexcept {
    return static_cast<uint64_t>(buffered_end_ - cursor_);
  }

  // Fills the whole of `out` with the next bytes.
  // REQUIRES: out.size() <= remaining_bytes().
  void take_into(std::span<std::byte> out);

  // What is in front of the next newline, which is taken as well; nullopt, and
  // nothing taken, when there is none. As take() otherwise.
  std::optional<std::string_view> take_line();

 private:
  // Until at least so many bytes are buffered.
  void fill(uint64_t byte_count);

  const ByteSource& source_;
  uint64_t next_;  // in the file, behind what is buffered
  uint64_t end_;   // in the file
  std::unique_ptr<std::byte[]> buffer_;
  uint64_t capacity_ = 0;
  // In buffer_, of what was not yet taken.
  const std::byte* cursor_ = nullptr;
  const std::byte* buffered_end_ = nullptr;
};

}  // namespace ckpt_streamer::format
