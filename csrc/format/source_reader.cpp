#include "format/source_reader.h"

#include <algorithm>
#include <utility>

namespace ckpt_streamer::format {
namespace {

// Stays in a processor's cache.
constexpr uint64_t kBufferBytes = 64 * 1024;

}  // namespace

void SourceReader::fill(uint64_t byte_count) {
  const uint64_t kept = buffered_bytes();
  const uint64_t wanted =
      std::min(std::max(byte_count, kBufferBytes), remaining_bytes());
  if (wanted > capacity_) {
    auto larger = std::make_unique_for_overwrite<std::byte[]>(wanted);
    std::copy_n(cursor_, kept, larger.get());
    buffer_ = std::move(larger);
    capacity_ = wanted;
  } else {
    std::copy_n(cursor_, kept, buffer_.get());  // to the front: ascending
  }
  source_.read(next_, {buffer_.get() + kept, wanted - kept});
  next_ += wanted - kept;
  cursor_ = buffer_.get();
  buffered_end_ = cursor_ + wanted;
}

void SourceReader::take_into(std::span<std::byte> out) {
  const auto buffered = std::min<uint64_t>(out.size(), buffered_bytes());
  std::copy_n(take(buffered), buffered, out.data());
  out = out.subspan(buffered);
  if (!out.empty()) {
    source_.read(next_, out);
    next_ += out.size();
  }
}

std::optional<std::string_view> SourceReader::take_line() {
  uint64_t searched = 0;
  for (;;) {
    const std::byte* const found =
        std::find(cursor_ + searched, buffered_end_, std::byte{'\n'});
    if (found != buffered_end_) {
      const auto line_bytes = static_cast<uint64_t>(found - cursor_);
      const std::byte* const line = take(line_bytes + 1);
      return std::string_view{reinterpret_cast<const char*>(line), line_bytes};
    }
    searched = buffered_bytes();
    if (searched == remaining_bytes()) {
      return std::nullopt;
    }
    fill(std::min(remaining_bytes(), 2 * searched + 1));
  }
}

}  // namespace ckpt_streamer::format
