// A growing array of 32-bit ids, like a vector of them, whose usual operations
// are a few instructions where they are used: a pickle's machine does little
// else. Not thread-safe while it grows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

namespace ckpt_streamer::format {

class IdBuffer {
 public:
  [[nodiscard]] size_t size() const noexcept {
    return size_;
  }
  [[nodiscard]] const uint32_t* data() const noexcept {
    return ids_.get();
  }
  // REQUIRES: position < size().
  [[nodiscard]] uint32_t& operator[](size_t position) noexcept {
    return ids_[position];
  }
  [[nodiscard]] uint32_t operator[](size_t position) const noexcept {
    return ids_[position];
  }

  // The ids from a position on; valid until the next is pushed.
  // REQUIRES: begin <= size().
  [[nodiscard]] std::span<const uint32_t> from(size_t begin) const noexcept {
    return {ids_.get() + begin, size_ - begin};
  }

  void push(uint32_t id) {
    if (size_ == capacity_) [[unlikely]] {
      grow(size_ + 1);
    }
    ids_[size_++] = id;
  }

  // REQUIRES: they are not this buffer's own.
  void append(std::span<const uint32_t> ids) {
    if (ids.size() > capacity_ - size_) [[unlikely]] {
      grow(size_ + ids.size());
    }
    for (const uint32_t id : ids) {
      ids_[size_++] = id;
    }
  }

  // As many times as it takes to have `size` of them.
  void pad(size_t size, uint32_t id) {
    reserve(size);
    while (size_ < size) {
      ids_[size_++] = id;
    }
  }

  // Drops the ids from there on. REQUIRES: size <= size().
  void cut(size_t size) noexcept {
    size_ = size;
  }

  void reserve(size_t capacity) {
    if (capacity > capacity_) {
      grow(capacity);
    }
  }

 private:
  [[gnu::noinline]] void grow(size_t needed) {
    const size_t capacity = std::max(needed, 2 * capacity_);
    auto larger = std::make_unique_for_overwrite<uint32_t[]>(capacity);
    std::copy_n(ids_.get(), size_, larger.get());
    ids_ = std::move(larger);
    capacity_ = capacity;
  }

  std::unique_ptr<uint32_t[]> ids_;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace ckpt_streamer::format
