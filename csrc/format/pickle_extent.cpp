#include "format/pickle_extent.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "base/error.h"
#include "format/little_endian.h"
#include "format/pickle_opcodes.h"
#include "format/source_reader.h"
#include "format/text.h"

namespace ckpt_streamer::format {
namespace {

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
      : origin_(origin),
        size_bytes_(source.size_bytes()),
        reader_(source, {origin.file_offset, source.size_bytes()}) {}

  uint64_t find_end() {
    for (;;) {
      const uint64_t op_offset = reader_.file_offset();
      const auto code = static_cast<uint8_t>(take_uint(1));
      if (pickle_opcode_name(code) == nullptr) {
        const std::byte byte{code};
        fail(
            ErrorKind::kCorrupt,
            "found byte 0x" + hex_bytes({&byte, 1}) +
                ", expected a pickle opcode",
            op_offset);
      }
      const auto opcode = static_cast<PickleOpcode>(code);
      if (opcode == PickleOpcode::k_STOP) {
        return reader_.file_offset();
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
        "the file ends at byte " + std::to_string(size_bytes_) +
            " inside a pickle, expected a STOP opcode",
        origin_.file_offset);
  }

  void skip(uint64_t byte_count) {
    if (byte_count > reader_.remaining_bytes()) {
      fail_end();
    }
    reader_.skip(byte_count);
    const uint64_t scanned = reader_.file_offset() - origin_.file_offset;
    if (scanned >= kPickleLimitBytes) {
      fail(
          ErrorKind::kUnsupported,
          "the pickle has " + std::to_string(scanned) +
              " bytes or more, expected less than 2 GiB",
          origin_.file_offset);
    }
  }

  uint64_t take_uint(size_t byte_count) {
    if (byte_count > reader_.remaining_bytes()) {
      fail_end();
    }
    return load_little_endian(reader_.take(byte_count), byte_count);
  }

  // Of any length, without all of it in memory.
  void skip_line() {
    for (;;) {
      // What is buffered, or else one byte, which brings more.
      const uint64_t byte_count =
          std::max<uint64_t>(reader_.buffered_bytes(), 1);
      if (reader_.remaining_bytes() == 0) {
        fail_end();
      }
      const std::byte* const bytes = reader_.peek(byte_count);
      const std::byte* const newline =
          std::find(bytes, bytes + byte_count, std::byte{'\n'});
      if (newline != bytes + byte_count) {
        return skip(static_cast<uint64_t>(newline - bytes) + 1);
      }
      skip(byte_count);
    }
  }

  const PickleOrigin& origin_;
  const uint64_t size_bytes_;
  SourceReader reader_;
};

}  // namespace

uint64_t find_pickle_end(const ByteSource& source, const PickleOrigin& origin) {
  return PickleScan(source, origin).find_end();
}

}  // namespace ckpt_streamer::format
