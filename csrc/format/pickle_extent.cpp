#include "format/pickle_extent.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string>

#include "base/error.h"
#include "format/little_endian.h"
#include "format/pickle_opcodes.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

constexpr uint64_t kWindowBytes = 64 * 1024;

// What follows an opcode. pickletools.py, ArgumentDescriptor.
struct OpcodeArgument {
  uint8_t fixed_bytes = 0;
  uint8_t count_bytes = 0;  // of a byte count in front of so many bytes
  uint8_t lines = 0;
};

OpcodeArgument argument_of(PickleOpcode opcode) noexcept {
  using enum PickleOpcode;
  switch (opcode) {
    case k_PROTO:
    case k_BININT1:
    case k_BINGET:
    case k_BINPUT:
    case k_EXT1:
      return {.fixed_bytes = 1};
    case k_BININT2:
    case k_EXT2:
      return {.fixed_bytes = 2};
    case k_BININT:
    case k_LONG_BINGET:
    case k_LONG_BINPUT:
    case k_EXT4:
      return {.fixed_bytes = 4};
    case k_BINFLOAT:
    case k_FRAME:
      return {.fixed_bytes = 8};
    case k_LONG1:
    case k_SHORT_BINUNICODE:
    case k_SHORT_BINSTRING:
    case k_SHORT_BINBYTES:
      return {.count_bytes = 1};
    case k_LONG4:
    case k_BINUNICODE:
    case k_BINSTRING:
    case k_BINBYTES:
      return {.count_bytes = 4};
    case k_BINUNICODE8:
    case k_BINBYTES8:
    case k_BYTEARRAY8:
      return {.count_bytes = 8};
    case k_INT:
    case k_LONG:
    case k_FLOAT:
    case k_STRING:
    case k_UNICODE:
    case k_PERSID:
    case k_GET:
    case k_PUT:
      return {.lines = 1};
    case k_GLOBAL:
    case k_INST:
      return {.lines = 2};
    default:
      return {};
  }
}

class PickleScan {
 public:
  PickleScan(const ByteSource& source, const PickleOrigin& origin)
      : source_(source),
        origin_(origin),
        position_(origin.file_offset),
        window_(std::make_unique_for_overwrite<std::byte[]>(kWindowBytes)) {}

  uint64_t find_end() {
    for (;;) {
      const auto code = static_cast<uint8_t>(take_uint(1));
      if (pickle_opcode_name(code) == nullptr) {
        const std::byte byte{code};
        fail(
            ErrorKind::kCorrupt,
            "found byte 0x" + hex_bytes({&byte, 1}) +
                ", expected a pickle opcode",
            position_ - 1);
      }
      const auto opcode = static_cast<PickleOpcode>(code);
      if (opcode == PickleOpcode::k_STOP) {
        return position_;
      }
      const OpcodeArgument argument = argument_of(opcode);
      skip(argument.fixed_bytes);
      if (argument.count_bytes > 0) {
        skip(take_uint(argument.count_bytes));
      }
      for (uint8_t line = 0; line < argument.lines; ++line) {
        skip_line();
      }
    }
  }

 private:
  [[noreturn]] void fail(
      ErrorKind kind,
      const std::string& what,
      uint64_t file_offset) const {
    throw CheckpointError(
        kind,
        origin_.path,
        what + " in " + quoted(origin_.record_name),
        file_offset);
  }
  [[noreturn]] void fail_end() const {
    fail(
        ErrorKind::kCorrupt,
        "the file ends at byte " + std::to_string(source_.size_bytes()) +
            " inside a pickle, expected a STOP opcode",
        origin_.file_offset);
  }

  // Moves on, to what is read next or not at all.
  void skip(uint64_t byte_count) {
    if (byte_count > source_.size_bytes() - position_) {
      fail_end();
    }
    position_ += byte_count;
    if (position_ - origin_.file_offset >= kPickleLimitBytes) {
      fail(
          ErrorKind::kUnsupported,
          "the pickle has " + std::to_string(position_ - origin_.file_offset) +
              " bytes or more, expected less than 2 GiB",
          origin_.file_offset);
    }
  }

  // The bytes from position_ on that are in the window, at least one.
  std::span<const std::byte> peek() {
    if (position_ == source_.size_bytes()) {
      fail_end();
    }
    if (position_ < window_begin_ || position_ >= window_end_) {
      window_begin_ = position_;
      window_end_ =
          position_ + std::min(kWindowBytes, source_.size_bytes() - position_);
      source_.read(window_begin_, {window_.get(), window_end_ - window_begin_});
    }
    return {
        window_.get() + (position_ - window_begin_),
        window_end_ - position_};
  }

  uint64_t take_uint(size_t byte_count) {
    std::array<std::byte, 8> bytes;
    for (size_t i = 0; i < byte_count; ++i) {
      bytes[i] = peek().front();
      skip(1);
    }
    return load_little_endian(bytes.data(), byte_count);
  }

  void skip_line() {
    for (;;) {
      const std::span<const std::byte> bytes = peek();
      const void* const newline = std::memchr(bytes.data(), '\n', bytes.size());
      if (newline != nullptr) {
        return skip(
            static_cast<uint64_t>(
                static_cast<const std::byte*>(newline) - bytes.data()) +
            1);
      }
      skip(bytes.size());
    }
  }

  const ByteSource& source_;
  const PickleOrigin& origin_;
  uint64_t position_;  // absolute
  std::unique_ptr<std::byte[]> window_;
  uint64_t window_begin_ = 0;  // absolute, of what window_ holds
  uint64_t window_end_ = 0;
};

}  // namespace

uint64_t find_pickle_end(const ByteSource& source, const PickleOrigin& origin) {
  return PickleScan(source, origin).find_end();
}

}  // namespace ckpt_streamer::format
